"""Resolving and checking the arguments of `FocalNet`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmfocalnet.archs import DEFAULTS, find_arch
from mmfocalnet.arguments import boolean, finite_number, integer, is_integer, is_list, probability
from mmfocalnet.errors import ConfigError
from mmfocalnet.models.focal_modulation import kernel_sizes
from mmfocalnet.models.mixers import check_mixer_name
from mmfocalnet.registry import type_name
from mmfocalnet.text import short_repr

# Settings under which the token mixer has the weights of the published operator.
_PUBLISHED_WEIGHTS = dict(
    mixer='focal_modulation', use_global_context=True, aggregate='all', use_gates=True
)
_MIXER_SETTINGS = (
    *('focal_factor', 'use_postln_in_modulation', 'normalize_modulator'),
    *('modulation', 'use_global_context', 'aggregate', 'use_gates'),
)


@dataclass(frozen=True)
class FocalNetArguments:
    """Arguments of a `FocalNet` after defaults and checks, with one value per stage.

    Attributes without a comment have the meaning of the constructor argument.
    """

    in_chans: int
    patch_size: int
    widths: tuple[int, ...]  # Channels of the stages.
    depths: tuple[int, ...]
    focal_levels: tuple[int, ...]
    focal_windows: tuple[int, ...]
    mlp_ratio: float
    drop_rate: float
    drop_path_rate: float
    patch_norm: bool
    use_conv_embed: bool
    use_postln: bool
    layerscale_value: float | None  # None: no layer scale.
    mixer: str
    mixer_settings: Mapping[str, Any]  # Those that are the same in all stages.
    out_indices: tuple[int, ...]
    frozen_stages: int
    use_checkpoint: bool

    def block_settings(self, stage: int) -> dict[str, Any]:
        """Arguments of the `FocalNetBlock`s of a stage, except ``drop_path``."""
        return dict(
            dim=self.widths[stage],
            mixer=self.mixer,
            mixer_settings=dict(
                focal_window=self.focal_windows[stage],
                focal_level=self.focal_levels[stage],
                **self.mixer_settings,
            ),
            mlp_ratio=self.mlp_ratio,
            drop=self.drop_rate,
            use_postln=self.use_postln,
            layerscale_value=self.layerscale_value,
        )


def resolve_arguments(arch: str | None, init_cfg: dict | None, **given: Any) -> FocalNetArguments:
    """Complete the arguments of `FocalNet` with those of the architecture and the defaults.

    Args:
        arch: Name of an architecture, or None.
        init_cfg: Checked only.
        **given: The other arguments; None means the value of the architecture or the default.

    Raises:
        ConfigError: If an argument is invalid; the message contains its name and value.
    """
    arch_settings = {} if arch is None else find_arch(arch)
    overrides = {k: v for k, v in given.items() if v is not None or k not in DEFAULTS}
    settings = {**DEFAULTS, **arch_settings, **overrides}
    depths = _check_depths(settings['depths'])
    stages = len(depths)
    embed_dim = integer('embed_dim', settings['embed_dim'], minimum=1)
    windows = _per_stage('focal_windows', settings['focal_windows'], stages)
    levels = _per_stage('focal_levels', settings['focal_levels'], stages)
    for window, level in zip(windows, levels, strict=True):
        kernel_sizes(window, level, settings['focal_factor'])
    use_layerscale = boolean('use_layerscale', settings['use_layerscale'])
    layerscale_value = finite_number('layerscale_value', settings['layerscale_value'])
    check_mixer_name(settings['mixer'])
    if init_cfg is not None:
        _check_init_cfg(init_cfg, settings)
    return FocalNetArguments(
        in_chans=integer('in_chans', settings['in_chans'], minimum=1),
        patch_size=_check_patch_size(settings['patch_size'], settings['use_conv_embed']),
        widths=tuple(embed_dim * 2**stage for stage in range(stages)),
        depths=depths,
        focal_levels=levels,
        focal_windows=windows,
        mlp_ratio=_check_mlp_ratio(settings['mlp_ratio'], embed_dim),
        drop_rate=probability('drop_rate', settings['drop_rate']),
        drop_path_rate=probability('drop_path_rate', settings['drop_path_rate']),
        patch_norm=boolean('patch_norm', settings['patch_norm']),
        use_conv_embed=boolean('use_conv_embed', settings['use_conv_embed']),
        use_postln=boolean('use_postln', settings['use_postln']),
        layerscale_value=layerscale_value if use_layerscale else None,
        mixer=settings['mixer'],
        mixer_settings={name: settings[name] for name in _MIXER_SETTINGS},
        out_indices=_check_out_indices(settings['out_indices'], stages),
        frozen_stages=integer('frozen_stages', settings['frozen_stages'], -1, stages),
        use_checkpoint=boolean('use_checkpoint', settings['use_checkpoint']),
    )


def pretrained_options(init_cfg: Any) -> dict[str, Any]:
    """Extract the arguments of `mmfocalnet.models.load_pretrained` from an ``init_cfg``.

    Args:
        init_cfg: ``dict(type='Pretrained', checkpoint=..., prefix=...)``.

    Returns:
        ``checkpoint`` and, if given, ``prefix``.

    Raises:
        ConfigError: If ``init_cfg`` has another type or other keys.
    """
    if type_name(init_cfg) not in ('Pretrained', 'PretrainedInit'):
        raise ConfigError(
            "FocalNet supports init_cfg=None or dict(type='Pretrained', checkpoint=...), "
            f'got {short_repr(init_cfg)}.'
        )
    # map_location is accepted and ignored: weights are always loaded through the CPU.
    options = {k: v for k, v in init_cfg.items() if k not in ('type', 'map_location')}
    if 'checkpoint' not in options or options.keys() - {'checkpoint', 'prefix'}:
        raise ConfigError(
            'init_cfg of type Pretrained takes checkpoint= and prefix=, '
            f'got {", ".join(sorted(map(str, options))) or "none"}.'
        )
    return options


def _check_init_cfg(init_cfg: Any, settings: dict[str, Any]) -> None:
    pretrained_options(init_cfg)
    for key, value in _PUBLISHED_WEIGHTS.items():
        if settings[key] != value:
            raise ConfigError(
                f'init_cfg loads the weights of {key}={value!r}, which do not fit '
                f'{key}={settings[key]!r}: set init_cfg=None. A checkpoint trained with the same '
                'settings can be given as load_from.'
            )


def _check_depths(depths: Any) -> tuple[int, ...]:
    if not is_list(depths) or not depths:
        raise ConfigError(
            f'depths must list the number of blocks of each stage, got {short_repr(depths)}.'
        )
    return tuple(integer('depths', depth, minimum=1) for depth in depths)


def _check_patch_size(patch_size: Any, use_conv_embed: Any) -> int:
    if boolean('use_conv_embed', use_conv_embed) and patch_size != 4:
        raise ConfigError(
            'use_conv_embed=True requires patch_size=4 (its 7x7 kernel has stride 4), '
            f'got patch_size={short_repr(patch_size)}.'
        )
    return integer('patch_size', patch_size, minimum=1)


def _check_mlp_ratio(mlp_ratio: Any, embed_dim: int) -> float:
    if int(embed_dim * finite_number('mlp_ratio', mlp_ratio)) < 1:
        raise ConfigError(
            f'mlp_ratio must give at least one hidden unit for {embed_dim} channels, '
            f'got {mlp_ratio}.'
        )
    return mlp_ratio


def _per_stage(name: str, value: Any, stages: int) -> tuple[int, ...]:
    values = tuple(value) if is_list(value) else (value,) * stages
    if len(values) != stages:
        raise ConfigError(
            f'{name} must have one value per stage ({stages}, the length of depths), '
            f'got {short_repr(list(values))}.'
        )
    return values


def _check_out_indices(out_indices: Any, stages: int) -> tuple[int, ...]:
    if out_indices is None:
        return tuple(range(stages))
    indices = tuple(out_indices) if is_list(out_indices) else (out_indices,)
    valid = indices and all(is_integer(i) and 0 <= i < stages for i in indices)
    if not valid or sorted(set(indices)) != list(indices):
        raise ConfigError(
            f'out_indices must be increasing stage numbers from 0 to {stages - 1}, '
            f'got {short_repr(out_indices)}.'
        )
    return tuple(map(int, indices))
