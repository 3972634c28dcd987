"""Checks of category names: the config's against the annotation file's and the model's heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from mmfocalnet.datasets.dataset_configs import dataset_class
from mmfocalnet.errors import ConfigError
from mmfocalnet.text import fold_name, short_repr


def class_names(dataset: dict) -> Sequence[str]:
    """The classes in the ``metainfo`` of a dataset's config, or those of its type.

    Raises:
        ConfigError: If they are a single string, or not strings.
    """
    kind = dataset_class(dataset)
    if not hasattr(kind, '_load_metainfo'):
        return ()
    metainfo = dataset.get('metainfo')
    if not isinstance(metainfo, (dict, type(None))):
        raise ConfigError(
            f'metainfo={short_repr(metainfo)} must be a dict, such as dict(classes=(...)).'
        )
    classes = kind._load_metainfo(metainfo).get('classes') or ()
    if isinstance(classes, str):
        raise ConfigError(
            f'metainfo has classes={classes!r}, a string: add the comma, classes=({classes!r},).'
        )
    if not isinstance(classes, Sequence) or not all(isinstance(name, str) for name in classes):
        raise ConfigError(
            f'metainfo has classes={short_repr(classes)}, expected strings: put each name in '
            "quotes, such as classes=('1', '2')."
        )
    return classes


def compare_categories(names: Sequence[str], classes: Sequence[str]) -> str | None:
    """Compare the categories of an annotation file with the classes of a config.

    mmdet ignores classes that the file lacks and numbers the others in the file's order.

    Args:
        names: Names of the categories in the order of the file.
        classes: Classes of the config in their order.

    Returns:
        The first difference; None if mmdet numbers the classes as the config does.
    """
    known = set(classes)
    if [name for name in names if name in known] == list(classes):
        return None
    missing = [name for name in classes if name not in names]
    if missing:
        similar = {fold_name(name): name for name in names}
        found = [similar[key] for key in map(fold_name, missing) if key in similar]
        similar_names = ', '.join(map(_quote, found[:4]))
        hint = f'; {similar_names} differs in case, spaces or punctuation' if found else ''
        return f'the file lacks {quote_names(missing)}{hint}'
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        return f'the file has {quote_names(repeated)} more than once'
    return 'the order differs'


def check_num_classes(dataset: dict, model: dict) -> None:
    """Compare the number of classes of a dataset with the ``num_classes`` of a model's heads.

    Args:
        dataset: Config of the dataset; one without classes passes.
        model: Config of the detector or segmentor.

    Raises:
        ConfigError: If they differ.
    """
    classes = class_names(dataset)
    for key, number in _num_classes(model) if classes else ():
        # mmseg's binary models may predict one class against the rest. In Panoptic FPN, boxes have
        # the classes of things only.
        if number not in (len(classes), 1, _count_things(dataset)):
            raise ConfigError(
                f'model.{key} is {number}, but the dataset has {len(classes)} classes '
                f'({quote_names(classes)}): set it to {len(classes)}, or correct metainfo of the '
                'dataset.'
            )


def _count_things(dataset: dict) -> int | None:
    things = dataset_class(dataset)._load_metainfo(dataset.get('metainfo')).get('thing_classes')
    return len(things) if things else None


def _num_classes(model: dict) -> Iterator[tuple[str, int]]:
    """The number of classes of each head, with its key."""
    roi_head = model.get('roi_head') or {}
    heads = {
        **{key: model.get(key) for key in ('bbox_head', 'decode_head', 'auxiliary_head')},
        **{f'roi_head.{key}': roi_head.get(key) for key in ('bbox_head', 'mask_head')},
    }
    for key, head in heads.items():
        parts = head if isinstance(head, (list, tuple)) else [head]
        for index, part in enumerate(parts):
            if isinstance((part or {}).get('num_classes'), int):
                place = f'.{index}' if parts is head else ''
                yield f'{key}{place}.num_classes', part['num_classes']
    panoptic = model.get('panoptic_head') or {}
    if 'num_things_classes' in panoptic and 'num_stuff_classes' in panoptic:
        number = panoptic['num_things_classes'] + panoptic['num_stuff_classes']
        yield 'panoptic_head.num_things_classes + num_stuff_classes', number


def quote_names(names: Sequence[str]) -> str:
    """At most four names in quotes, and their number if there are more."""
    shown = ', '.join(map(_quote, names[:4]))
    return f'{shown}, ... ({len(names)} in all)' if len(names) > 4 else shown


def _quote(name: str) -> str:
    return f'"{name}"'
