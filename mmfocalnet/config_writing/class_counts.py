"""The number of classes, in every place of a model that has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmfocalnet.config import find_dicts
from mmfocalnet.config_writing.labels import Labels
from mmfocalnet.datasets.category_names import class_names
from mmfocalnet.datasets.dataset_configs import find_datasets


def set_class_counts(cfg: Config, recipe: Config, labels: Labels) -> None:
    """Set the number of classes and the weights of classes in the model.

    Args:
        cfg: The config, whose model is changed.
        recipe: The config before its dataset was changed.
        labels: The data.
    """
    parts = list(_parts(cfg.model))
    old = _old_count(recipe, parts)
    total = len(labels.classes)
    things = total - labels.stuff
    for part in parts:
        if 'num_things_classes' in part:
            part.update(num_things_classes=things)
        if 'num_stuff_classes' in part:
            part.update(num_stuff_classes=labels.stuff)
        if part.get('num_classes') == old:
            part.num_classes = things
        weights = part.get('class_weight')
        if isinstance(weights, (list, tuple)) and len(weights) > 2:
            classes = old if len(weights) == old else len(weights) - 1
            part.class_weight = _resize(list(weights), classes, total)


def _parts(model: dict) -> Iterator[dict]:
    """The parts of a model that may have a number of classes, without region proposals."""
    for key, value in model.items():
        if key not in ('backbone', 'neck', 'rpn_head', 'data_preprocessor'):
            yield from find_dicts(value)


def _old_count(cfg: Config, parts: list[dict]) -> int:
    """Number of classes of the recipe: that of its dataset, or the most frequent one."""
    counts = Counter(
        part['num_classes'] for part in parts if isinstance(part.get('num_classes'), int)
    )
    counts.update(part['num_things_classes'] for part in parts if 'num_things_classes' in part)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        for dataset in find_datasets((cfg.get('train_dataloader') or {}).get('dataset')):
            if (count := len(class_names(dataset or {}))) in counts:
                return count
    return counts.most_common(1)[0][0] if counts else 0  # region proposals have no classes


def _resize(weights: list[float], old: int, new: int) -> list[float]:
    """Weights of the new classes, and the old ones of "no object" or background after them."""
    classes, rest = weights[:old], weights[old:]
    weight = classes[0] if len(set(classes)) == 1 else 1.0
    return [weight] * new + rest
