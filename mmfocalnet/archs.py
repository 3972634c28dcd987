"""Named architectures of the paper, as constructor arguments of `FocalNet`.

The width doubles from stage to stage. ``focal_windows`` are those of pretraining; configs override
them, for example by ``arch='tiny_lrf', focal_windows=[9] * 4``.
"""

from __future__ import annotations

import difflib
from typing import Any

from mmfocalnet.errors import ConfigError
from mmfocalnet.released import RELEASED
from mmfocalnet.text import short_repr

_SRF = dict(focal_levels=2, focal_windows=3)  # kernels 3, 5: small receptive field
_LRF = dict(focal_levels=3, focal_windows=3)  # kernels 3, 5, 7: large receptive field

_TINY = dict(embed_dim=96, depths=(2, 2, 6, 2))
_SMALL = dict(embed_dim=96, depths=(2, 2, 18, 2))
_BASE = dict(embed_dim=128, depths=(2, 2, 18, 2))

# "Deeper and thinner" (Table 3).
_TINY_DEEP = dict(embed_dim=64, depths=(3, 3, 16, 3))
_SMALL_DEEP = dict(embed_dim=64, depths=(4, 4, 28, 4))
_BASE_DEEP = dict(embed_dim=96, depths=(4, 4, 28, 4))

# Models pretrained on ImageNet-22K: overlapped embedding, post-norm, layer scale.
_22K = dict(use_conv_embed=True, use_postln=True, use_layerscale=True)
_LARGE = dict(embed_dim=192, depths=(2, 2, 18, 2), **_22K)
_XLARGE = dict(embed_dim=256, depths=(2, 2, 18, 2), **_22K)
_HUGE = dict(embed_dim=352, depths=(2, 2, 18, 2), use_postln_in_modulation=True, **_22K)
_FL3 = dict(focal_levels=3, focal_windows=5)
_FL4 = dict(focal_levels=4, focal_windows=3)

# One stage at stride 16, as in a ViT (Table 13).
_ISO = dict(depths=(12,), patch_size=16, **_LRF)

ARCHS: dict[str, dict[str, Any]] = {
    'tiny_srf': dict(_TINY, **_SRF),
    'tiny_lrf': dict(_TINY, **_LRF),
    'small_srf': dict(_SMALL, **_SRF),
    'small_lrf': dict(_SMALL, **_LRF),
    'base_srf': dict(_BASE, **_SRF),
    'base_lrf': dict(_BASE, **_LRF),
    'tiny_deep_srf': dict(_TINY_DEEP, **_SRF),
    'tiny_deep_lrf': dict(_TINY_DEEP, **_LRF),
    'small_deep_srf': dict(_SMALL_DEEP, **_SRF),
    'small_deep_lrf': dict(_SMALL_DEEP, **_LRF),
    'base_deep_srf': dict(_BASE_DEEP, **_SRF),
    'base_deep_lrf': dict(_BASE_DEEP, **_LRF),
    'large_fl3': dict(_LARGE, **_FL3),
    # Implementations differ in `normalize_modulator` of the fl4 models. This is the setting in the
    # 2022 release of FocalNet.
    'large_fl4': dict(_LARGE, **_FL4, normalize_modulator=True),
    'xlarge_fl3': dict(_XLARGE, **_FL3),
    'xlarge_fl4': dict(_XLARGE, **_FL4),
    'huge_fl3': dict(_HUGE, **_LRF),
    'huge_fl4': dict(_HUGE, **_FL4),
    'tiny_iso': dict(embed_dim=192, **_ISO),
    'small_iso': dict(embed_dim=384, **_ISO),
    'base_iso': dict(embed_dim=768, use_layerscale=True, use_postln=True, **_ISO),
}

CHECKPOINTS: dict[str, str] = {
    arch: RELEASED[name].url
    for arch in ARCHS
    if (name := f'focalnet-{arch.replace("_", "-")}') in RELEASED
}
"""Released ImageNet checkpoints of the architectures."""

# Defaults of the arguments that an architecture may set. In the signature they are None.
DEFAULTS: dict[str, Any] = dict(
    patch_size=4,
    embed_dim=96,
    depths=(2, 2, 6, 2),
    focal_levels=2,
    focal_windows=9,
    use_conv_embed=False,
    use_postln=False,
    use_layerscale=False,
    use_postln_in_modulation=False,
    normalize_modulator=False,
)


def find_arch(name: str) -> dict[str, Any]:
    """Return a copy of the constructor arguments of an architecture.

    Args:
        name: A key of `ARCHS`, such as ``'tiny_lrf'``.

    Raises:
        ConfigError: If there is no such architecture; the message suggests similar names.
    """
    if isinstance(name, str) and name in ARCHS:
        return dict(ARCHS[name])
    similar = difflib.get_close_matches(short_repr(name), ARCHS, n=3, cutoff=0.4)
    hint = f'did you mean {" or ".join(map(repr, similar))}?' if similar else 'choose a known one.'
    raise ConfigError(f'Unknown arch {short_repr(name)}: {hint} Known names: {", ".join(ARCHS)}.')
