"""Deduce the FocalNet architecture of a checkpoint, with the origin of each setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

from mmfocalnet.archs import ARCHS, DEFAULTS
from mmfocalnet.checkpoints.dino import Detector
from mmfocalnet.checkpoints.fit import describe
from mmfocalnet.checkpoints.layouts import OUTPUT_NORM, Network, State
from mmfocalnet.models import FocalNet

# By source, architecture and number of scales.
_CONFIGS = {
    ('FocalNet-DINO', 'large_fl3', 4): 'focalnet_l_fl3_4scale_12e',
    ('FocalNet-DINO', 'large_fl4', 5): 'focalnet_l_fl4_5scale_12e',
    ('detrex', 'tiny_lrf', 4): 'detrex_focalnet_t_4scale_12e',
    ('detrex', 'small_lrf', 4): 'detrex_focalnet_s_4scale_12e',
    ('detrex', 'base_lrf', 4): 'detrex_focalnet_b_4scale_12e',
    ('detrex', 'large_fl3', 4): 'detrex_focalnet_l_fl3_4scale_12e',
    ('detrex', 'large_fl4', 4): 'detrex_focalnet_l_fl4_4scale_12e',
    ('detrex', 'large_fl4', 5): 'detrex_focalnet_l_fl4_5scale_12e',
}
FROM_FILE, FROM_USER = 'from the file', 'from the user'  # all other origins are assumptions
_DEFAULTS: dict[str, Any] = {
    name: signature(FocalNet).parameters[name].default
    for name in ('in_chans', 'focal_factor', 'mlp_ratio', 'patch_norm')
} | {
    name: value
    for name, value in DEFAULTS.items()
    if name not in ('embed_dim', 'depths', 'focal_levels', 'focal_windows')  # always given
}


@dataclass(frozen=True)
class Architecture:
    """Architecture of a FocalNet.

    Attributes:
        settings: Constructor arguments of `FocalNet`, without ``out_indices``.
        origins: Origin of each setting that keys and shapes do not determine.
        nearest: The named architecture that differs in the fewest settings.
        differences: Settings other than the windows in which it differs.
    """

    settings: dict[str, Any]
    origins: dict[str, str]
    nearest: str
    differences: list[str]

    def backbone(self) -> dict[str, Any]:
        """The minimal arguments of `FocalNet`, with ``arch`` if a named architecture matches."""
        by_name = not {'embed_dim', 'depths'} & set(self.differences)
        base = _settings_of(self.nearest) if by_name else _DEFAULTS
        short = {'arch': self.nearest} if by_name else {}
        return short | {key: v for key, v in self.settings.items() if base.get(key) != v}


def deduce(network: Network, given: Mapping[str, bool] | None = None) -> Architecture:
    """Deduce the architecture from keys, shapes and metadata.

    Args:
        network: Of `select_network`.
        given: ``use_postln`` and ``normalize_modulator`` from the user, which override those of
            the file. Defaults to None.

    Returns:
        The architecture.

    Raises:
        CheckpointError: If a tensor has dimensions that no FocalNet has, or the numbers of
            stages or blocks have gaps.
    """
    settings = {**describe(network.state, network.checkpoint), **_details(network.state)}
    settings['use_postln'] = settings['use_layerscale']
    normalized, origin = _assume_normalized(settings, network.layout)
    settings['normalize_modulator'] = normalized
    origins = dict(
        use_postln='assumed: released checkpoints use layer scale and post-norm together',
        normalize_modulator=f'assumed: {origin}',
    )
    for source, values in ((FROM_FILE, network.settings), (FROM_USER, given or {})):
        for key, value in values.items():
            settings[key], origins[key] = value, source
    nearest = min(ARCHS, key=lambda name: _distance(name, settings))
    return Architecture(settings, origins, nearest, _differences(nearest, settings))


def find_config(
    detector: Detector, architecture: Architecture
) -> tuple[str, dict[str, int]] | None:
    """Find the config of a published DINO detector.

    Args:
        detector: The detector.
        architecture: Architecture of its backbone.

    Returns:
        Path in the folder ``configs``, and the settings to change; None if no config has this
        architecture.
    """
    if set(architecture.backbone()) - {'arch', 'normalize_modulator'}:
        return None
    name = _CONFIGS.get((detector.source, architecture.nearest, detector.scales))
    if name is None:
        return None
    classes = 80 if detector.has_unused_logits else detector.num_classes
    default = 80
    if name == _CONFIGS['FocalNet-DINO', 'large_fl4', 5] and classes == 366:
        name, default = 'focalnet_l_fl4_5scale_objects365', 366
    changes = {}
    if classes != default:
        changes['model.bbox_head.num_classes'] = classes
    if detector.num_queries != 900:
        changes['model.num_queries'] = detector.num_queries
    return f'dino/{name}.py', changes


def output_stages(state: State) -> list[int]:
    """The stages whose output norms are in a state dict."""
    return sorted({int(match[1]) for match in map(OUTPUT_NORM.fullmatch, state) if match})


def _assume_normalized(settings: Mapping[str, Any], layout: str) -> tuple[bool, str]:
    """Assume a value of ``normalize_modulator``; also returns the reason."""
    if layout == 'timm':  # not even in large_fl4
        return False, "timm's networks do not set it"
    twin = next((name for name in ARCHS if not _differences(name, settings)), None)
    if twin is None:
        return False, 'no released checkpoint of this shape sets it'
    return _settings_of(twin)['normalize_modulator'], f"the release's setting of {twin}"


def _details(state: State) -> dict[str, Any]:
    """Settings that are equal in all released checkpoints."""
    details: dict[str, Any] = dict(patch_norm='patch_embed.norm.weight' in state)
    hidden = {
        value.shape[1]: value.shape[0]
        for key, value in state.items()
        if key.endswith('.blocks.0.mlp.fc1.weight')
    }
    if hidden:
        details['mlp_ratio'] = _ratio(hidden)
    steps = [
        state[second].shape[-1] - kernel.shape[-1]
        for first, kernel in state.items()
        if first.endswith('.focal_layers.0.0.weight')
        and (second := first.replace('.focal_layers.0.', '.focal_layers.1.')) in state
    ]
    details['focal_factor'] = steps[0] if steps else 2
    return details


def _ratio(hidden: Mapping[int, int]) -> float:
    """The shortest ``mlp_ratio`` with these hidden widths, which are given by channels."""
    widest = max(hidden)
    exact = hidden[widest] / widest
    candidates = (round(exact, digits or None) for digits in range(4))
    # FocalNet truncates dim * mlp_ratio; the exact quotient could give a width 1 too small.
    middle = (hidden[widest] + 0.5) / widest
    return next(
        (r for r in candidates if all(int(c * r) == width for c, width in hidden.items())), middle
    )


def _settings_of(name: str) -> dict[str, Any]:
    """All settings of a named architecture, as lists per stage like those of `describe`."""
    settings = {**_DEFAULTS, **ARCHS[name]}
    settings['depths'] = list(settings['depths'])
    for key in ('focal_levels', 'focal_windows'):
        settings[key] = [settings[key]] * len(settings['depths'])
    return settings


def _differences(name: str, settings: Mapping[str, Any]) -> list[str]:
    """Settings visible in the tensors, except the windows, that differ from an architecture."""
    ignored = ('focal_windows', 'normalize_modulator', 'use_postln')
    named = _settings_of(name)
    return [key for key in settings if key not in ignored and named[key] != settings[key]]


def _distance(name: str, settings: Mapping[str, Any]) -> tuple[int, int, bool]:
    named = _settings_of(name)
    size = abs(sum(named['depths']) - sum(settings['depths']))
    size += abs(named['embed_dim'] - settings['embed_dim'])
    windows_differ = named['focal_windows'] != settings['focal_windows']
    return len(_differences(name, settings)), size, windows_differ
