"""Key layouts of FocalNet checkpoints: detect them, rename to and from the 2022 release's."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mmfocalnet.checkpoints.dino import Detector, find_detector
from mmfocalnet.checkpoints.metadata import read_settings
from mmfocalnet.checkpoints.read import Checkpoint
from mmfocalnet.errors import CheckpointError
from mmfocalnet.text import join_keys, short_text

State = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]

CLASSIFIER = ('norm.weight', 'norm.bias', 'head.weight', 'head.bias')
OUTPUT_NORM = re.compile(r'norm(\d{1,9})\.(weight|bias)', re.ASCII)
STEM = 'patch_embed.proj.weight'

# The release's names are on the left. {i} is a stage, {next} the next stage, {j} a block. The first
# rule that matches the start of a key renames it.
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
# timm implements these as 1x1 convolutions; the modulator's h is one in every layout.
_LINEAR = re.compile(
    r'layers\.\d+\.blocks\.\d+\.(modulation\.(f|proj)|mlp\.fc[12])\.weight', re.ASCII
)
_CONTEXT = 'layers.0.blocks.0.modulation.f.weight'
_OTHER_BLOCK = re.compile(r'layers\.\d+\.blocks\.\d+\.dw1\.', re.ASCII)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# One key of each kind, to find the layout that is most similar to an unknown file.
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
    """Names and shapes of the tensors of a FocalNet in one project.

    Attributes:
        name: ``'release'`` (also mmfocalnet's own), ``'timm'`` or ``'transformers'``.
        rules: Pairs of key prefixes, the release's and this layout's.
    """

    name: str
    rules: Rules = ()

    def from_release(self, key: str) -> str:
        """Rename a key of the release."""
        return _renamed(key, self.rules)

    def to_release(self, key: str) -> str:
        """Rename a key of this layout."""
        return _renamed(key, tuple((theirs, ours) for ours, theirs in self.rules))


RELEASE = Layout('release')
TIMM = Layout('timm', _TIMM)
TIMM_POSTNORM = Layout('timm', _TIMM_POSTNORM)
TRANSFORMERS = Layout('transformers', _TRANSFORMERS)
_LAYOUTS = (RELEASE, TIMM, TRANSFORMERS)


@dataclass(frozen=True)
class Network:
    """A FocalNet in a checkpoint, in the release's names and shapes.

    Attributes:
        checkpoint: Name of the checkpoint; error messages start with it.
        state: Its tensors.
        layout: Name of the layout in the file.
        source: Program that writes such files, for the log.
        prefix: Prefix of its keys in the file.
        others: Keys of the file that do not belong to it, such as neck and heads.
        settings: ``use_postln`` and ``normalize_modulator``, if the names of the layout or the
            metadata specify them, or the detector.
        detector: The published DINO detector to which it belongs; None for other files.
    """

    checkpoint: str
    state: State
    layout: str
    source: str
    prefix: str
    others: list[str]
    settings: dict[str, bool]
    detector: Detector | None = None

    def __str__(self) -> str:
        if not self.prefix:
            return self.source
        return f'{self.source}; keys below {self.prefix!r}, {len(self.others)} other keys'


def select_network(checkpoint: Checkpoint, prefix: str | None = None) -> Network:
    """Select a FocalNet in a checkpoint of any known layout, which may contain other modules.

    Args:
        checkpoint: Of `open_checkpoint`.
        prefix: Prefix of the network's keys, such as ``'backbone.'``. Defaults to None: detected,
            if the checkpoint contains exactly one FocalNet.

    Returns:
        The network, renamed to the release's keys.

    Raises:
        CheckpointError: If there is no FocalNet, or not under that prefix, or several.
    """
    found = _networks(checkpoint.state)
    if not found:
        raise _no_network(checkpoint)
    prefixes = ', '.join(map(repr, found))
    if prefix is None:
        if len(found) > 1:
            raise CheckpointError(
                f'{checkpoint.name} contains several FocalNets. Select one of {prefixes} by '
                'prefix= (--prefix).'
            )
        prefix = next(iter(found))
    elif prefix and not prefix.endswith('.'):
        prefix += '.'
    prefix = next((p for p in (prefix, f'module.{prefix}') if p in found), prefix)
    if prefix not in found:
        raise CheckpointError(
            f'{checkpoint.name} has no FocalNet under the prefix {prefix!r}. Use one of {prefixes}.'
        )
    if len(found[prefix]) > 1:
        layouts = ' and '.join(layout.name for layout in found[prefix])
        raise CheckpointError(
            f'{checkpoint.name} is ambiguous: its keys below {prefix!r} match the layouts '
            f'{layouts}. Keep one of them.'
        )
    return _extract(checkpoint, prefix, found[prefix][0])


def to_timm(state: Mapping[str, Tensor], use_postln: bool) -> State:
    """Rename and reshape a FocalNet to timm's ``focalnet_*``.

    Args:
        state: State dict in the release's names.
        use_postln: Whether its blocks are post-norm, for which timm has other names.

    Returns:
        State dict in timm's names; linear weights (N, C) become (N, C, 1, 1).
    """
    layout = TIMM_POSTNORM if use_postln else TIMM
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
    """Prefix of each FocalNet to its possible layouts."""
    found: dict[str, list[Layout]] = {}
    for layout in _LAYOUTS:
        stem, context = layout.from_release(STEM), layout.from_release(_CONTEXT)
        for key in state:
            prefix = key.removesuffix(stem)
            if prefix != key and (not prefix or prefix.endswith('.')) and prefix + context in state:
                # FocalNetForImageClassification and FocalNetBackbone contain a FocalNetModel.
                wrapper = 'focalnet.' if layout is TRANSFORMERS else ''
                found.setdefault(prefix.removesuffix(wrapper), []).append(layout)
    return dict(sorted(found.items()))


def _extract(checkpoint: Checkpoint, prefix: str, layout: Layout) -> Network:
    state = checkpoint.state
    own = {key: key.removeprefix(prefix) for key in state if key.startswith(prefix)}
    if layout is TRANSFORMERS:
        own = {key: short.removeprefix('focalnet.') for key, short in own.items()}
    _check_blocks(own.values(), checkpoint.name)
    settings = read_settings(checkpoint.metadata)
    detector = find_detector(state)
    if detector:
        settings['normalize_modulator'] = _normalizes(detector, own.values())
    if layout is TIMM:
        settings['use_postln'] = any('.norm1_post.' in key for key in own)
        layout = TIMM_POSTNORM if settings['use_postln'] else TIMM
    renamed = {key: layout.to_release(short) for key, short in own.items()}
    if len(set(renamed.values())) < len(renamed):
        raise CheckpointError(
            f'{checkpoint.name} is ambiguous: several of its keys map to the same tensor of the '
            f'{layout.name} layout. Keep one of them.'
        )
    network = {name: _reshaped(name, state[key]) for key, name in renamed.items()}
    wrong = [f'{key} {value.dtype}' for key, value in network.items() if value.dtype not in _FLOATS]
    if wrong:
        raise CheckpointError(
            f'{checkpoint.name} has weights of unsupported types ({join_keys(wrong)}). Use the '
            'checkpoint from before quantization, or cast them to float32.'
        )
    others = [key for key in state if key not in own]
    source = str(detector) if detector else _source(layout, checkpoint, network)
    return Network(
        checkpoint.name, network, layout.name, source, prefix, others, settings, detector
    )


def _check_blocks(keys: Collection[str], name: str) -> None:
    if any(_OTHER_BLOCK.match(key) for key in keys):
        raise CheckpointError(
            f'{name} contains additional depth-wise convolutions (dw1), as X-Decoder T and SEEM T '
            'do; FocalNet has none. Use X-Decoder L or SEEM L.'
        )


def _normalizes(detector: Detector, keys: Collection[str]) -> bool:
    """Whether a published detector has ``normalize_modulator``: FocalNet-DINO's with four levels.

    Except FocalNet-H, which has norms in the modulation instead.
    """
    four = any('.focal_layers.3.' in key for key in keys)
    return detector.source == 'FocalNet-DINO' and four and not any('.ln.' in key for key in keys)


def _reshaped(key: str, value: Tensor) -> Tensor:
    is_conv = value.ndim == 4 and value.shape[2:] == (1, 1)
    return value.flatten(1) if is_conv and _LINEAR.fullmatch(key) else value


def _source(layout: Layout, checkpoint: Checkpoint, network: State) -> str:
    if layout.name == 'timm':
        return "timm's focalnet_*"
    if layout.name == 'transformers':
        wrapped = any('focalnet.embeddings.' in key for key in checkpoint.state)
        head = 'ForImageClassification' if 'head.weight' in network else 'Backbone'
        return f"transformers' FocalNet{head if wrapped else 'Model'}"
    if 'mmfocalnet' in checkpoint.metadata:
        return "mmfocalnet's converter"
    if 'mmengine_version' in checkpoint.metadata:
        return "MMEngine's training checkpoint"
    for package in ('mmdet', 'mmseg'):
        version = checkpoint.metadata.get(f'{package}_version')
        if isinstance(version, str):
            return f"the 2022 release's {package} {short_text(version)}"
    if any(map(OUTPUT_NORM.fullmatch, network)):
        return 'a dense model of the 2022 release or of mmfocalnet (same names)'
    return "the release's classification model"


def _renamed(key: str, rules: Rules) -> str:
    for old, new in rules:
        match = _pattern(old).match(key)
        if match:
            indices = {name: int(value) for name, value in match.groupdict().items()}
            if 'next' in indices:
                indices['i'] = indices['next'] - 1
            elif 'i' in indices:
                indices['next'] = indices['i'] + 1
            return new.format(**indices) + key[match.end() :]
    return key


@cache
def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template).replace(r'\{', '{').replace(r'\}', '}')
    return re.compile(re.sub(r'\{(\w+)\}', r'(?P<\1>\\d{1,9})', escaped), re.ASCII)


def _no_network(checkpoint: Checkpoint) -> CheckpointError:
    """The error for a file without FocalNet; its message contains the most similar layout."""
    keys = [f'.{_kind(key)}' for key in checkpoint.state]
    missing = {
        layout.name: [
            name
            for name in map(layout.from_release, _KINDS)
            if not any(key.endswith(f'.{_kind(name)}') for key in keys)
        ]
        for layout in _LAYOUTS
    }
    nearest = min(missing, key=lambda name: len(missing[name]))
    lacking, total = missing[nearest], len(_KINDS)
    if not lacking:
        return CheckpointError(
            f'{checkpoint.name} contains no complete FocalNet: stage 0 of the {nearest} layout is '
            'missing. Use a complete checkpoint.'
        )
    similar = (
        'no known layout is similar'
        if len(lacking) == total
        else f'the most similar layout is {nearest}, with {total - len(lacking)} of {total} kinds '
        f'of keys, but without {lacking[0]!r}'
    )
    examples = ', '.join(repr(short_text(key)) for key in list(checkpoint.state)[:3])
    return CheckpointError(
        f'{checkpoint.name} contains no FocalNet: {similar}. Its first keys are {examples}.'
    )


def _kind(key: str) -> str:
    return re.sub(r'\b\d+\b', '#', key)
