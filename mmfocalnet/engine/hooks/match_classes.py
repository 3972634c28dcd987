"""Start a DINO detector from a checkpoint of other classes."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmfocalnet.checkpoints.dino import match_classes
from mmfocalnet.datasets.category_names import class_names, quote_names
from mmfocalnet.datasets.dataset_configs import find_datasets
from mmfocalnet.errors import ConfigError
from mmfocalnet.registry import register


@register(HOOKS)
class MatchClassesHook(Hook):
    """Keep the weights of the classes that a checkpoint has too, by their names.

    For mmdet's ``DINO``. The other classes start with new weights. Without this hook, MMEngine
    leaves all weights that depend on the number of classes at their initial values.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Replace the weights per class in a checkpoint before it is loaded.

        Raises:
            ConfigError: If the runner shards the model.
        """
        theirs = _classes_of(checkpoint)
        ours = class_names(next(find_datasets(runner.cfg.train_dataloader.dataset)))
        if tuple(theirs) == tuple(ours):
            return
        if not isinstance(runner, Runner):
            raise ConfigError(
                'MatchClassesHook does not support sharded models: remove runner_type and '
                'strategy, or the hook.'
            )
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        state, kept = match_classes(checkpoint['state_dict'], model.state_dict(), theirs, ours)
        checkpoint['state_dict'] = state
        print_log(
            f'{len(kept)} of {len(ours)} classes start from the weights of the checkpoint'
            f'{f" ({quote_names(kept)})" if kept else ""}, the others from new weights.',
            logger='current',
        )


def _classes_of(checkpoint: dict[str, Any]) -> tuple[str, ...]:
    """Names of the classes of a checkpoint; empty if its metadata are missing or malformed."""
    meta = checkpoint.get('meta')
    dataset_meta = meta.get('dataset_meta') if isinstance(meta, dict) else None
    classes = dataset_meta.get('classes') if isinstance(dataset_meta, dict) else None
    valid = isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes)
    return tuple(classes) if valid else ()
