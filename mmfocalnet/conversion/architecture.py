"""Deducing which FocalNet a checkpoint is, and saying where each answer comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

from torch import Tensor

from mmfocalnet.archs import ARCHS, DEFAULTS
from mmfocalnet.checkpoints.fit import check_dimensions, describe
from mmfocalnet.checkpoints.layouts import OUTPUT_NORM
from mmfocalnet.models import FocalNet

TOLD, GIVEN = 'told by the file', 'given'  # whatever else an origin says is an assumption
_DEFAULTS: dict[str, Any] = {
    name: signature(FocalNet).parameters[name].default
    for name in ('in_chans', 'focal_factor', 'mlp_ratio', 'patch_norm')
} | {
    name: value
    for name, value in DEFAULTS.items()
    if name not in ('embed_dim', 'depths', 'focal_levels', 'focal_windows')  # always stated
}


@dataclass(frozen=True)
class Architecture:
    """Which FocalNet a checkpoint is.

    Attributes:
        settings: Constructor arguments of `FocalNet`, ``out_indices`` apart.
        origins: Where those come from that keys and shapes do not tell.
        nearest: The named architecture that differs in the fewest settings.
        differences: Settings other than the windows in which it differs.
    """

    settings: dict[str, Any]
    origins: dict[str, str]
    nearest: str
    differences: list[str]

    def backbone(self) -> dict[str, Any]:
        """The shortest arguments of `FocalNet` for it, by the named architecture if that fits."""
        by_name = not {'embed_dim', 'depths'} & set(self.differences)
        base = _named(self.nearest) if by_name else _DEFAULTS
        short = {'arch': self.nearest} if by_name else {}
        return short | {key: v for key, v in self.settings.items() if base.get(key) != v}


def deduce(
    state: Mapping[str, Tensor],
    told: Mapping[str, bool] | None = None,
    given: Mapping[str, bool] | None = None,
    layout: str = 'release',
) -> Architecture:
    """Deduce the architecture from keys and shapes, and what they cannot tell from elsewhere.

    Args:
        state: State dict in the release's names.
        told: ``use_postln`` and ``normalize_modulator``, as far as key names or metadata of
            the file tell them. Defaults to None.
        given: The same by the user, who is believed most. Defaults to None.
        layout: Name of the layout that it came in. Defaults to ``'release'``.

    Returns:
        The architecture.

    Raises:
        CheckpointError: If a tensor has dimensions that no FocalNet has, or stages or blocks
            are missing between others.
    """
    check_dimensions(state)
    settings = {**describe(state), **_details(state)}
    settings['use_postln'] = settings['use_layerscale']
    normalized, origin = _assumed_modulator(settings, layout)
    settings['normalize_modulator'] = normalized
    origins = dict(
        use_postln='assumed: in every released checkpoint layer scale goes with post-norm',
        normalize_modulator=f'assumed: {origin}',
    )
    for source, values in ((TOLD, told), (GIVEN, given)):
        for key, value in (values or {}).items():
            settings[key], origins[key] = value, source
    nearest = min(ARCHS, key=lambda name: _distance(name, settings))
    return Architecture(settings, origins, nearest, _differences(nearest, settings))


def _assumed_modulator(settings: Mapping[str, Any], layout: str) -> tuple[bool, str]:
    """Whether the modulator is normalised where nothing tells, and why that is assumed."""
    if layout == 'timm':  # which sets it in none of its models, not even in large_fl4
        return False, "timm's networks do not"
    twin = next((name for name in ARCHS if not _differences(name, settings)), None)
    if twin is None:
        return False, 'no released checkpoint of such a shape has it'
    return _named(twin)['normalize_modulator'], f"the release's setting of {twin}"


def output_stages(state: Mapping[str, Tensor]) -> list[int]:
    """The stages whose output norms a state dict holds."""
    return sorted({int(match[1]) for match in map(OUTPUT_NORM.fullmatch, state) if match})


def _details(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What every released checkpoint has in common, and others need not."""
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
    """The shortest number from which `FocalNet` gets these hidden widths, by channels."""
    widest = max(hidden)
    # int() cuts the fraction off, so that the hidden width alone could round to one less.
    between = (hidden[widest] + 0.5) / widest
    exact = hidden[widest] / widest
    candidates = (round(exact, digits or None) for digits in range(4))
    return next(
        (r for r in candidates if all(int(c * r) == width for c, width in hidden.items())), between
    )


def _named(name: str) -> dict[str, Any]:
    """All settings of a named architecture, written per stage as `describe` does."""
    full = {**_DEFAULTS, **ARCHS[name]}
    full['depths'] = list(full['depths'])
    for key in ('focal_levels', 'focal_windows'):
        full[key] = [full[key]] * len(full['depths'])
    return full


def _differences(name: str, settings: Mapping[str, Any]) -> list[str]:
    """Settings in which a named architecture differs; windows, and what no tensor tells, apart."""
    aside = ('focal_windows', 'normalize_modulator', 'use_postln')
    named = _named(name)
    return [key for key in settings if key not in aside and named[key] != settings[key]]


def _distance(name: str, settings: Mapping[str, Any]) -> tuple[int, int, bool]:
    named = _named(name)
    size = abs(sum(named['depths']) - sum(settings['depths']))
    size += abs(named['embed_dim'] - settings['embed_dim'])
    windows_differ = named['focal_windows'] != settings['focal_windows']
    return len(_differences(name, settings)), size, windows_differ
