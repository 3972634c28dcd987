"""Released models by name: their configs and the URLs of their weights.

A name is accepted wherever a checkpoint is, such as ``init_cfg=dict(type='Pretrained',
checkpoint='focalnet-tiny-lrf')``.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_IMAGENET = 'https://github.com/microsoft/FocalNet/releases/download/v1.0.0/'
_MICROSOFT = 'https://huggingface.co/microsoft/'
_DETREX = 'https://github.com/IDEA-Research/detrex-storage/releases/download/'


class Released(NamedTuple):
    """A released model.

    Attributes:
        url: URL of its weights.
        config: Its config in the folder ``configs``; None for a backbone without one.
    """

    url: str
    config: str | None = None


RELEASED: dict[str, Released] = {
    'focalnet-tiny-srf': Released(
        _IMAGENET + 'focalnet_tiny_srf.pth', 'imagenet/focalnet_t_srf.py'
    ),
    'focalnet-tiny-lrf': Released(_IMAGENET + 'focalnet_tiny_lrf.pth', 'imagenet/focalnet_t.py'),
    'focalnet-small-srf': Released(
        _IMAGENET + 'focalnet_small_srf.pth', 'imagenet/focalnet_s_srf.py'
    ),
    'focalnet-small-lrf': Released(_IMAGENET + 'focalnet_small_lrf.pth', 'imagenet/focalnet_s.py'),
    'focalnet-base-srf': Released(
        _IMAGENET + 'focalnet_base_srf.pth', 'imagenet/focalnet_b_srf.py'
    ),
    'focalnet-base-lrf': Released(_IMAGENET + 'focalnet_base_lrf.pth', 'imagenet/focalnet_b.py'),
    'focalnet-large-fl3': Released(_IMAGENET + 'focalnet_large_lrf_384.pth'),
    'focalnet-large-fl4': Released(_IMAGENET + 'focalnet_large_lrf_384_fl4.pth'),
    'focalnet-xlarge-fl3': Released(_IMAGENET + 'focalnet_xlarge_lrf_384.pth'),
    'focalnet-xlarge-fl4': Released(_IMAGENET + 'focalnet_xlarge_lrf_384_fl4.pth'),
    'dino-focalnet-l': Released(
        _MICROSOFT + 'focalnet-large-fl4-dino-o365-cocoft/resolve/main/'
        'focalnet_large_fl4_o365_finetuned_on_coco.pth',
        'dino/focalnet_l_fl4_5scale_12e.py',
    ),
    'dino-focalnet-l-objects365': Released(
        _MICROSOFT + 'focalnet-large-fl4-dino-o365/resolve/main/'
        'focalnet_large_fl4_pretrained_on_o365.pth',
        'dino/focalnet_l_fl4_5scale_objects365.py',
    ),
    'dino-focalnet-l-fl3-12e': Released(
        _DETREX + 'v0.2.1/dino_focal_large_lrf_384_4scale_12ep.pth',
        'dino/detrex_focalnet_l_fl3_4scale_12e.py',
    ),
    'dino-focalnet-l-fl3-36e': Released(
        _DETREX + 'v0.4.0/dino_focal_large_3level_4scale_36ep.pth',
        'dino/detrex_focalnet_l_fl3_4scale_36e.py',
    ),
    'dino-focalnet-l-fl4-12e': Released(
        _DETREX + 'v0.2.1/dino_focal_large_lrf_384_fl4_4scale_12ep.pth',
        'dino/detrex_focalnet_l_fl4_4scale_12e.py',
    ),
    'dino-focalnet-l-fl4-5scale-12e': Released(
        _DETREX + 'v0.2.1/dino_focalnet_large_lrf_384_fl4_5scale_12ep.pth',
        'dino/detrex_focalnet_l_fl4_5scale_12e.py',
    ),
}

DETECTORS = tuple(name for name in RELEASED if name.startswith('dino-'))
"""Names of the released detectors."""


def configs_folder() -> Path:
    """The folder ``configs`` of the repository or, without one, of the installed package."""
    package = Path(__file__).resolve().parent
    installed = package / '.mim' / 'configs'
    return installed if installed.is_dir() else package.parent / 'configs'
