"""Start a DINO detector from a checkpoint of other classes."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner

from mmfocalnet.checkpoints.dino import count_classes, match_classes
from mmfocalnet.datasets.category_names import class_names, quote_names
from mmfocalnet.datasets.dataset_configs import find_datasets
from mmfocalnet.registry import register


@register(HOOKS)
class MatchClassesHook(Hook):
    """Initialize the classes of a DINO detector from those of the same name in ``load_from``.

    The other classes are initialized randomly. Without this hook, MMEngine initializes all weights
    that depend on the number of classes randomly. Testing and resuming are not affected.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Replace the weights per class in a checkpoint before it is loaded."""
        # MMEngine builds the training loop before it loads the checkpoint of a training run.
        if not isinstance(runner._train_loop, BaseLoop) or runner.cfg.get('resume'):
            return
        state = checkpoint.get('state_dict', checkpoint)
        theirs = _classes_of(checkpoint)
        ours = class_names(next(find_datasets(runner.cfg.train_dataloader.dataset)))
        if theirs == tuple(ours) or len(theirs) != count_classes(state):
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        fitted, kept = match_classes(state, model.state_dict(), theirs, ours)
        state.update(fitted)
        print_log(
            f'{len(kept)} of {len(ours)} classes are initialized from the checkpoint'
            f'{f" ({quote_names(kept)})" if kept else ""}, the others randomly.',
            logger='current',
        )


def _classes_of(checkpoint: dict[str, Any]) -> tuple[str, ...]:
    """Names of the classes of a checkpoint; empty if its metadata are missing or malformed."""
    meta = checkpoint.get('meta')
    dataset_meta = meta.get('dataset_meta') if isinstance(meta, dict) else None
    classes = dataset_meta.get('classes') if isinstance(dataset_meta, dict) else None
    valid = isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes)
    return tuple(classes) if valid else ()
