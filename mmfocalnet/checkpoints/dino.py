"""Published DINO detectors with a FocalNet: recognize them, rename their weights to mmdet's names.

Two code bases published weights: FocalNet-DINO and detrex.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmfocalnet.compat.log_filters import import_datasets
from mmfocalnet.errors import CheckpointError
from mmfocalnet.text import fold_name, join_keys

Rules = tuple[tuple[str, str], ...]

COCO_IDS = tuple(i for i in range(91) if i not in (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""Category ids of the 80 classes of COCO. FocalNet-DINO has a logit for each number up to 90."""

_FIRST_HEAD = 'bbox_head.cls_branches.0.weight'
LABEL_EMBEDDING = 'dn_query_generator.label_embedding.weight'
_CLASS_ROWS = re.compile(
    rf'bbox_head\.cls_branches\.\d+\.(weight|bias)|{re.escape(LABEL_EMBEDDING)}'
)
_NUMBERED_PARTS = (
    *('neck.convs', 'encoder.layers', 'decoder.layers'),
    *('bbox_head.cls_branches', 'bbox_head.reg_branches'),
)
_NUMBERED = re.compile(rf'({"|".join(map(re.escape, _NUMBERED_PARTS))})\.(\d{{1,9}})\.(.*)')
_COPIES = re.compile(r'transformer\.decoder\.((?:class|bbox)_embed\..*)')

# Patterns of the published keys, and mmdet's. Both code bases have the first ones.
_LAYER = r'transformer\.(encoder|decoder)\.layers\.(\d+)\.'
_COMMON: Rules = (
    (r'transformer\.level_embeds?', 'level_embed'),
    (r'transformer\.tgt_embed\.(.*)', r'query_embedding.\1'),
    (r'transformer\.enc_output\.(.*)', r'memory_trans_fc.\1'),
    (r'transformer\.enc_output_norm\.(.*)', r'memory_trans_norm.\1'),
    (r'transformer\.decoder\.((?:norm|ref_point_head)\..*)', r'decoder.\1'),
    (r'class_embed\.(.*)', r'bbox_head.cls_branches.\1'),
    (r'bbox_embed\.(\d+)\.layers\.0\.(.*)', r'bbox_head.reg_branches.\1.0.\2'),
    (r'bbox_embed\.(\d+)\.layers\.1\.(.*)', r'bbox_head.reg_branches.\1.2.\2'),
    (r'bbox_embed\.(\d+)\.layers\.2\.(.*)', r'bbox_head.reg_branches.\1.4.\2'),
    (r'label_enc\.weight', LABEL_EMBEDDING),
)
_FOCALNET_DINO: Rules = (
    (r'backbone\.0\.(.*)', r'backbone.\1'),
    (rf'{_LAYER}self_attn\.(in_proj_|out_proj)(.*)', r'\1.layers.\2.self_attn.attn.\3\4'),
    (rf'{_LAYER}((?:self|cross)_attn\..*)', r'\1.layers.\2.\3'),
    (rf'{_LAYER}linear1\.(.*)', r'\1.layers.\2.ffn.layers.0.0.\3'),
    (rf'{_LAYER}linear2\.(.*)', r'\1.layers.\2.ffn.layers.1.\3'),
    # The norms have the order of their use in the encoder only.
    (r'transformer\.encoder\.layers\.(\d+)\.norm1\.(.*)', r'encoder.layers.\1.norms.0.\2'),
    (r'transformer\.encoder\.layers\.(\d+)\.norm2\.(.*)', r'encoder.layers.\1.norms.1.\2'),
    (r'transformer\.decoder\.layers\.(\d+)\.norm2\.(.*)', r'decoder.layers.\1.norms.0.\2'),
    (r'transformer\.decoder\.layers\.(\d+)\.norm1\.(.*)', r'decoder.layers.\1.norms.1.\2'),
    (r'transformer\.decoder\.layers\.(\d+)\.norm3\.(.*)', r'decoder.layers.\1.norms.2.\2'),
)
_DETREX: Rules = (
    (r'(backbone\..*)', r'\1'),
    (r'(neck\.(?:extra_)?convs\.\d+\.conv\..*)', r'\1'),
    (r'(neck\.(?:extra_)?convs\.\d+\.)norm\.(.*)', r'\1gn.\2'),
    (rf'{_LAYER}attentions\.0\.attn\.(.*)', r'\1.layers.\2.self_attn.attn.\3'),
    (rf'{_LAYER}attentions\.0\.(.*)', r'\1.layers.\2.self_attn.\3'),
    (rf'{_LAYER}attentions\.1\.(.*)', r'\1.layers.\2.cross_attn.\3'),
    (rf'{_LAYER}ffns\.0\.(layers\..*)', r'\1.layers.\2.ffn.\3'),
    (rf'{_LAYER}(norms\..*)', r'\1.layers.\2.\3'),
)
_STEMS = {
    'FocalNet-DINO': 'backbone.0.patch_embed.proj.weight',
    'detrex': 'backbone.patch_embed.proj.weight',
}
_COCO_LOGITS = 91
_CLASSES = 'class_embed.0.weight'
# Temperatures of the position encodings, which are not visible in the tensors.
_TEMPERATURES = {'FocalNet-DINO': 20, 'detrex': 10000}
_QUERIES = 'transformer.tgt_embed.weight'


@dataclass(frozen=True)
class Detector:
    """A published DINO detector.

    Attributes:
        source: Code base that wrote it, ``'FocalNet-DINO'`` or ``'detrex'``.
        scales: Number of feature maps in the encoder.
        num_classes: Number of logits: 80 or, with a logit per category id, 91 for COCO, and 366 for
            Objects365.
        num_queries: Number of queries.
    """

    source: str
    scales: int
    num_classes: int
    num_queries: int

    @property
    def has_unused_logits(self) -> bool:
        """Whether it has a logit for each of COCO's category ids up to 90."""
        return self.source == 'FocalNet-DINO' and self.num_classes == _COCO_LOGITS

    @property
    def temperature(self) -> int:
        """Temperature of its position encoding."""
        return _TEMPERATURES[self.source]

    def __str__(self) -> str:
        return (
            f'DINO of {self.source}, {self.scales} scales, {self.num_classes} classes, '
            f'{self.num_queries} queries'
        )


def find_detector(state: Mapping[str, Any]) -> Detector | None:
    """Recognize a published DINO detector by its keys.

    Args:
        state: State dict in the published names, or any other dict.

    Returns:
        The detector, or None if it is something else.
    """
    keys = _short_keys(state)
    source = next((name for name, stem in _STEMS.items() if stem in keys), None)
    levels = 'transformer.level_embeds' if source == 'detrex' else 'transformer.level_embed'
    rows: list[Any] = [state.get(keys.get(key, '')) for key in (levels, _CLASSES, _QUERIES)]
    if source is None or not all(isinstance(value, Tensor) for value in (*rows, *state.values())):
        return None
    if not all(value.ndim for value in rows):
        return None
    return Detector(source, *map(len, rows))


def to_mmdet(
    state: Mapping[str, Tensor], keep_classes: bool = False, name: str = 'The checkpoint'
) -> dict[str, Tensor]:
    """Rename the weights of a published detector to those of mmdet's ``DINO``.

    Args:
        state: State dict for which `find_detector` returns a detector.
        keep_classes: Keep the 91 logits of FocalNet-DINO instead of the 80 of COCO's classes.
            Defaults to False.
        name: Name of the checkpoint, for error messages. Defaults to ``'The checkpoint'``.

    Returns:
        State dict in mmdet's names.

    Raises:
        CheckpointError: If it has unknown keys, lacks layers or heads, or has copies of the heads
            that differ or heads of different numbers of classes.
    """
    detector = find_detector(state)
    assert detector, 'see find_detector'
    weights = _drop_copies({key: state[full] for key, full in _short_keys(state).items()}, name)
    own = _DETREX if detector.source == 'detrex' else _FOCALNET_DINO + _numbered(weights)
    names = {key: _renamed(key, own + _COMMON) for key in weights}
    unknown = [key for key, new in names.items() if not new]
    if unknown:
        raise CheckpointError(
            f'{name} is from {detector.source}, but has unknown keys ({join_keys(unknown)}). Use '
            'the unmodified checkpoint of a DINO detector.'
        )
    weights = {names[key]: value for key, value in weights.items()}
    if LABEL_EMBEDDING in weights:  # FocalNet-DINO has an additional label
        weights[LABEL_EMBEDDING] = weights[LABEL_EMBEDDING][: detector.num_classes]
    _check_layers(weights, name)
    _check_classes(weights, detector.num_classes, name)
    if keep_classes or not detector.has_unused_logits:
        return weights
    return {key: v[list(COCO_IDS)] if _is_per_class(key) else v for key, v in weights.items()}


def class_names(detector: Detector, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the classes of a published detector, from mmdet's datasets.

    Args:
        detector: The detector.
        state: Its state dict of `to_mmdet`.

    Returns:
        One name per class; none if the number of classes is that of no known dataset.
    """
    import_datasets('mmdet')
    datasets = sys.modules.get('mmdet.datasets')
    if datasets is None:  # mmdet is not installed
        return ()
    coco = datasets.CocoDataset.METAINFO['classes']
    known = [coco]
    if detector.source == 'FocalNet-DINO':
        ids = dict(zip(COCO_IDS, coco, strict=True))
        known.append(tuple(ids.get(i, f'unused {i}') for i in range(_COCO_LOGITS)))
        known.append(('unused', *datasets.Objects365V2Dataset.METAINFO['classes']))
    count = count_classes(state)
    return next((names for names in known if len(names) == count), ())


def count_classes(state: Mapping[str, Tensor]) -> int:
    """Number of classes of a DINO detector in mmdet's names; 0 for other state dicts."""
    return len(state.get(_FIRST_HEAD, ()))


def match_classes(
    state: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    theirs: Sequence[str],
    ours: Sequence[str],
) -> tuple[dict[str, Tensor], list[str]]:
    """Fit a DINO detector to other classes: classes of the same name keep their weights.

    Args:
        state: State dict of the checkpoint, in mmdet's names.
        target: State dict of the model, whose values the other classes keep.
        theirs: Names of the classes of the checkpoint.
        ours: Names of the classes of the model.

    Returns:
        A new state dict, and the names of the classes that keep their weights.
    """
    rows = {fold_name(name): index for index, name in enumerate(theirs)}
    pairs = [(i, rows[key]) for i, key in enumerate(map(fold_name, ours)) if key in rows]
    new, old = [i for i, _ in pairs], [j for _, j in pairs]
    fitted = dict(state)
    for key in filter(_is_per_class, state.keys() & target.keys()):
        if state[key].shape[1:] == target[key].shape[1:]:
            fitted[key] = target[key].clone()
            fitted[key][new] = state[key][old].to(fitted[key])
    return fitted, [ours[i] for i in new]


def _check_classes(weights: Mapping[str, Tensor], count: int, name: str) -> None:
    for key in filter(_is_per_class, weights):
        if weights[key].shape[:1] != (count,):
            raise CheckpointError(
                f'{name} has {key} of shape {tuple(weights[key].shape)}, expected {count} classes. '
                'Use the unmodified checkpoint.'
            )


def _drop_copies(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Drop the copies of the heads that the decoder has."""
    copies = {key: match[1] for key in weights if (match := _COPIES.fullmatch(key))}
    differ = [
        key
        for key, original in copies.items()
        if original in weights and not torch.equal(weights[key], weights[original])
    ]
    if differ:
        copied = [copies[key] for key in differ]
        raise CheckpointError(
            f'{name} has {join_keys(differ)}, which must be copies of {join_keys(copied)} but '
            'differ. Use the unmodified checkpoint.'
        )
    return {key: value for key, value in weights.items() if key not in copies}


def _check_layers(weights: Mapping[str, Tensor], name: str) -> None:
    """Check that all layers and all heads are there."""
    parts: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for match in filter(None, map(_NUMBERED.fullmatch, weights)):
        parts[match[1]][int(match[2])].add(match[3])
    layers = {part: 1 + max(numbers) for part, numbers in parts.items()}
    heads = 1 + layers.get('decoder.layers', 0)  # the last one is the encoder's
    for part in _NUMBERED_PARTS:
        count = heads if part.startswith('bbox_head') else layers.get(part, 1)
        keys = [parts[part][number] for number in range(count)]
        if not keys[0] or any(keys[0] != other for other in keys):
            raise CheckpointError(
                f'{name} is incomplete or damaged: some of the {count} {part} of the DINO detector '
                'lack weights. Use a complete checkpoint.'
            )


def _is_per_class(key: str) -> bool:
    return _CLASS_ROWS.fullmatch(key) is not None


def _short_keys(state: Mapping[str, Any]) -> dict[str, str]:
    """Keys without the prefix of ``DistributedDataParallel``, to the full keys."""
    return {key.removeprefix('module.'): key for key in state if isinstance(key, str)}


def _numbered(keys: Collection[str]) -> Rules:
    """Rules of FocalNet-DINO for the parts that have other numbers in mmdet."""
    outputs = sum(bool(re.fullmatch(r'backbone\.0\.norm\d+\.weight', key)) for key in keys)
    heads = sum(bool(re.fullmatch(r'class_embed\.\d+\.weight', key)) for key in keys)
    rules = [
        (r'transformer\.enc_out_class_embed\.(.*)', rf'bbox_head.cls_branches.{heads}.\1'),
        *(
            (
                rf'transformer\.enc_out_bbox_embed\.layers\.{i}\.(.*)',
                rf'bbox_head.reg_branches.{heads}.{2 * i}.\1',
            )
            for i in range(3)
        ),
    ]
    levels = {match[1] for key in keys if (match := re.match(r'input_proj\.(\d{1,9})\.', key))}
    for number in map(int, levels):
        convs = f'convs.{number}' if number < outputs else f'extra_convs.{number - outputs}'
        rules.append((rf'input_proj\.{number}\.0\.(.*)', rf'neck.{convs}.conv.\1'))
        rules.append((rf'input_proj\.{number}\.1\.(.*)', rf'neck.{convs}.gn.\1'))
    return tuple(rules)


def _renamed(key: str, rules: Rules) -> str:
    """The key in mmdet; empty if it is unknown."""
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    return ''
