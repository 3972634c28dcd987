"""Key layouts of FocalNet checkpoints: recognising them, renaming to and from the release's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mmfocalnet.checkpoints.metadata import told_settings
from mmfocalnet.errors import CheckpointError
from mmfocalnet.text import named, shown

State = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]

CLASSIFIER = ('norm.weight', 'norm.bias', 'head.weight', 'head.bias')
# Numbers of more digits count nothing, and Python refuses to read the longest.
OUTPUT_NORM = re.compile(r'norm(\d{1,9})\.(weight|bias)', re.ASCII)
STEM = 'patch_embed.proj.weight'

# The release's names on the left. {i} is a stage, {next} the one after it, {j} a block; the
# first rule that fits the start of a key renames it.
_BLOCK = 'layers.{i}.blocks.{j}.'
_TIMM: Rules = (
    ('patch_embed.', 'stem.'),
    ('layers.{i}.downsample.', 'layers.{next}.downsample.'),
    (f'{_BLOCK}modulation.ln.', f'{_BLOCK}modulation.norm.'),
    (f'{_BLOCK}gamma_1', f'{_BLOCK}ls1.gamma'),
    (f'{_BLOCK}gamma_2', f'{_BLOCK}ls2.gamma'),
    ('head.', 'head.fc.'),
)
_TIMM_POSTNORM: Rules = (
    (f'{_BLOCK}norm1.', f'{_BLOCK}norm1_post.'),
    (f'{_BLOCK}norm2.', f'{_BLOCK}norm2_post.'),
    *_TIMM,
)
_LAYER = 'encoder.stages.{i}.layers.{j}.'
_TRANSFORMERS: Rules = (
    ('patch_embed.proj.', 'embeddings.patch_embeddings.projection.'),
    ('patch_embed.norm.', 'embeddings.norm.'),
    ('layers.{i}.downsample.proj.', 'encoder.stages.{i}.downsample.projection.'),
    ('layers.{i}.downsample.norm.', 'encoder.stages.{i}.downsample.norm.'),
    (f'{_BLOCK}modulation.f.', f'{_LAYER}modulation.projection_in.'),
    (f'{_BLOCK}modulation.h.', f'{_LAYER}modulation.projection_context.'),
    (f'{_BLOCK}modulation.proj.', f'{_LAYER}modulation.projection_out.'),
    (f'{_BLOCK}modulation.ln.', f'{_LAYER}modulation.layernorm.'),
    (_BLOCK, _LAYER),
    ('norm.', 'layernorm.'),
    ('head.', 'classifier.'),
)
# timm computes these as 1x1 convolutions (the modulator's h is one everywhere).
_LINEAR = re.compile(
    r'layers\.\d+\.blocks\.\d+\.(modulation\.(f|proj)|mlp\.fc[12])\.weight', re.ASCII
)
_CONTEXT = 'layers.0.blocks.0.modulation.f.weight'
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# One key of each kind, for measuring how near a foreign file comes.
_KINDS = (
    *(STEM, _CONTEXT, 'patch_embed.norm.weight', 'norm.weight', 'head.weight'),
    *('layers.0.downsample.proj.weight', 'layers.0.downsample.norm.weight'),
    *('layers.0.blocks.0.norm1.weight', 'layers.0.blocks.0.norm2.weight'),
    *('layers.0.blocks.0.mlp.fc1.weight', 'layers.0.blocks.0.mlp.fc2.weight'),
    *('layers.0.blocks.0.modulation.h.weight', 'layers.0.blocks.0.modulation.proj.weight'),
    'layers.0.blocks.0.modulation.focal_layers.0.0.weight',
)


@dataclass(frozen=True)
class Layout:
    """How one project names and shapes the tensors of a FocalNet.

    Attributes:
        name: ``'release'`` (mmfocalnet's own as well), ``'timm'`` or ``'transformers'``.
        rules: Pairs of key beginnings, the release's and this layout's.
    """

    name: str
    rules: Rules = ()

    def from_release(self, key: str) -> str:
        """Rename a key of the release's."""
        return _renamed(key, self.rules)

    def to_release(self, key: str) -> str:
        """Rename a key of this layout's."""
        return _renamed(key, tuple((theirs, ours) for ours, theirs in self.rules))


RELEASE = Layout('release')
TIMM = Layout('timm', _TIMM)
TRANSFORMERS = Layout('transformers', _TRANSFORMERS)
_LAYOUTS = (RELEASE, TIMM, TRANSFORMERS)


@dataclass(frozen=True)
class Network:
    """One FocalNet of a checkpoint, in the release's names and shapes.

    Attributes:
        state: Its tensors.
        layout: Name of the layout that they came in.
        source: Who writes such files, in words, for the log.
        prefix: What stood before its keys.
        others: Keys of the file that do not belong to it, such as neck and heads.
        settings: ``use_postln`` and ``normalize_modulator``, as far as the layout's names or
            the metadata tell them.
    """

    state: State
    layout: str
    source: str
    prefix: str
    others: list[str]
    settings: dict[str, bool]

    def __str__(self) -> str:
        if not self.prefix:
            return self.source
        return f'{self.source}; keys below {self.prefix!r}, beside {len(self.others)} others'


def select_network(
    state: Mapping[str, Tensor],
    prefix: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Network:
    """Cut one FocalNet out of a state dict of any known layout, which may hold more.

    Args:
        state: State dict as it came out of the file.
        prefix: What stands before the network's keys, such as ``'backbone.'``. Defaults to
            None: found by itself, where just one FocalNet is in the file.
        metadata: Of `open_checkpoint`; tells more of the source. Defaults to None.

    Returns:
        The network, renamed to the release's keys.

    Raises:
        CheckpointError: If there is no FocalNet, or not under that prefix, or several.
    """
    found = _networks(state)
    if not found:
        raise CheckpointError(_nearest(state))
    names = ', '.join(repr(item) for item in found)
    if prefix is None:
        if len(found) > 1:
            raise CheckpointError(
                f'holds several FocalNets: choose by prefix= (--prefix), one of {names}.'
            )
        prefix = next(iter(found))
    else:
        prefix = _closed(prefix)
        prefix = next((p for p in (prefix, 'module.' + prefix) if p in found), prefix)
    if prefix not in found:
        raise CheckpointError(f'has no FocalNet under prefix {prefix!r}: it is under {names}.')
    if len(found[prefix]) > 1:
        layouts = ' and '.join(layout.name for layout in found[prefix])
        raise CheckpointError(
            f'is ambiguous: its keys below {prefix!r} are those of {layouts}; keep one of them.'
        )
    return _cut(state, prefix, found[prefix][0], metadata or {})


def to_timm(state: Mapping[str, Tensor], use_postln: bool) -> State:
    """Rename and reshape a FocalNet to timm's ``focalnet_*``.

    Args:
        state: State dict in the release's names.
        use_postln: Whether its blocks are post-norm, which timm names otherwise.

    Returns:
        State dict in timm's names; linear weights (N, C) become (N, C, 1, 1).
    """
    layout = Layout('timm', _TIMM_POSTNORM if use_postln else _TIMM)
    return {
        layout.from_release(key): value[..., None, None] if _LINEAR.fullmatch(key) else value
        for key, value in state.items()
    }


def to_transformers(state: Mapping[str, Tensor]) -> State:
    """Rename a FocalNet to transformers' ``FocalNetForImageClassification`` and ``-Backbone``.

    Args:
        state: State dict in the release's names.

    Returns:
        State dict in transformers' names.
    """
    renamed = {TRANSFORMERS.from_release(key): value for key, value in state.items()}
    return {
        key if key.startswith('classifier.') else f'focalnet.{key}': value
        for key, value in renamed.items()
    }


def _networks(state: Mapping[str, Tensor]) -> dict[str, list[Layout]]:
    """Prefix to the layouts in which a FocalNet begins there."""
    found: dict[str, list[Layout]] = {}
    for layout in _LAYOUTS:
        stem, context = layout.from_release(STEM), layout.from_release(_CONTEXT)
        for key in state:
            prefix = key.removesuffix(stem)
            if prefix != key and (not prefix or prefix.endswith('.')) and prefix + context in state:
                found.setdefault(_base(prefix, layout), []).append(layout)
    return dict(sorted(found.items()))


def _base(prefix: str, layout: Layout) -> str:
    # FocalNetForImageClassification and FocalNetBackbone wrap what FocalNetModel is.
    return prefix.removesuffix('focalnet.') if layout is TRANSFORMERS else prefix


def _closed(prefix: str) -> str:
    return prefix if not prefix or prefix.endswith('.') else prefix + '.'


def _cut(
    state: Mapping[str, Tensor], prefix: str, layout: Layout, metadata: Mapping[str, Any]
) -> Network:
    own = {key: key.removeprefix(prefix) for key in state if key.startswith(prefix)}
    if layout is TRANSFORMERS:
        own = {key: short.removeprefix('focalnet.') for key, short in own.items()}
    settings = told_settings(metadata)
    if layout is TIMM:
        use_postln = any('.norm1_post.' in key for key in own)
        settings['use_postln'] = use_postln
        layout = Layout('timm', _TIMM_POSTNORM if use_postln else _TIMM)
    renamed = {key: layout.to_release(short) for key, short in own.items()}
    if len(set(renamed.values())) < len(renamed):
        raise CheckpointError(
            f'is ambiguous: several of its keys mean the same tensor of the {layout.name} layout.'
        )
    cut = {name: _linear(name, state[key]) for key, name in renamed.items()}
    _check_floats(cut)
    others = [key for key in state if key not in own]
    source = _source(layout, state, cut, metadata)
    return Network(cut, layout.name, source, prefix, others, settings)


def _check_floats(cut: State) -> None:
    wrong = [f'{key} {value.dtype}' for key, value in cut.items() if value.dtype not in _FLOATS]
    if wrong:
        raise CheckpointError(
            f'has weights of types in which no FocalNet is stored ({named(wrong)}): take the '
            'checkpoint from before it was quantised, or cast them to float32.'
        )


def _linear(key: str, value: Tensor) -> Tensor:
    is_conv = value.ndim == 4 and value.shape[2:] == (1, 1)
    return value.flatten(1) if is_conv and _LINEAR.fullmatch(key) else value


def _source(
    layout: Layout, state: Mapping[str, Tensor], cut: State, metadata: Mapping[str, Any]
) -> str:
    if layout.name == 'timm':
        return "timm's focalnet_*"
    if layout.name == 'transformers':
        wrapped = any('focalnet.embeddings.' in key for key in state)
        head = 'FocalNetForImageClassification' if 'head.weight' in cut else 'FocalNetBackbone'
        return f"transformers' {head if wrapped else 'FocalNetModel'}"
    if 'mmfocalnet' in metadata:
        return "mmfocalnet's converter"
    if 'mmengine_version' in metadata:
        return "MMEngine's training checkpoint"
    for package in ('mmdet', 'mmseg'):
        version = metadata.get(f'{package}_version')
        if isinstance(version, str):
            return f"the 2022 release's {package} {shown(version)}"
    if any(map(OUTPUT_NORM.fullmatch, cut)):
        return 'a dense model of the 2022 release or of mmfocalnet, whose names agree'
    return "the release's classification model"


def _renamed(key: str, rules: Rules) -> str:
    for old, new in rules:
        match = _pattern(old).match(key)
        if match:
            return new.format(**_indices(match)) + key[match.end() :]
    return key


@cache
def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template).replace(r'\{', '{').replace(r'\}', '}')
    return re.compile(re.sub(r'\{(\w+)\}', r'(?P<\1>\\d{1,9})', escaped), re.ASCII)


def _indices(match: re.Match[str]) -> dict[str, int]:
    indices = {name: int(value) for name, value in match.groupdict().items()}
    if 'next' in indices:
        indices['i'] = indices['next'] - 1
    elif 'i' in indices:
        indices['next'] = indices['i'] + 1
    return indices


def _nearest(state: Mapping[str, Tensor]) -> str:
    """Why a file is refused that holds no FocalNet, and what it resembles most."""
    keys = [_kind(key) for key in state]
    scores = {}
    for layout in _LAYOUTS:
        kinds = {key: _kind(layout.from_release(key)) for key in _KINDS}
        scores[layout.name] = [
            layout.from_release(key)
            for key, kind in kinds.items()
            if not any(('.' + other).endswith('.' + kind) for other in keys)
        ]
    name = min(scores, key=lambda layout: len(scores[layout]))
    missing, total = scores[name], len(_KINDS)
    examples = ', '.join(repr(shown(key)) for key in list(state)[:3])
    if len(missing) == total:
        return f'holds no FocalNet, nor anything like one: its keys are like {examples}.'
    if not missing:
        return (
            f'holds no whole FocalNet: stage 0 of its {name} layout is missing; take a whole one.'
        )
    return (
        f'holds no FocalNet: nearest is the {name} layout, of which it has '
        f'{total - len(missing)} of {total} kinds of keys but no {missing[0]!r}; its keys are '
        f'like {examples}.'
    )


def _kind(key: str) -> str:
    return re.sub(r'\b\d+\b', '#', key)
