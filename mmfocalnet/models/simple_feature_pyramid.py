"""Feature pyramid from a single map, for the monolithic FocalNets (Table 13 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from mmfocalnet.arguments import integer, is_integer, is_list
from mmfocalnet.errors import ConfigError
from mmfocalnet.registry import register
from mmfocalnet.text import short_repr

SCALES = (4, 2, 1, 0.5)  # Sizes of the levels relative to the input map.


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W) at each location."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@register(MODELS)
class SimpleFeaturePyramid(BaseModule):
    """Simple feature pyramid of ViTDet (Li et al. 2022, Section 3): all levels from one map.

    From a map of stride 16 it computes maps of strides 4 (two transposed convolutions), 8 (one),
    16 and 32 (2x2 max pooling), each followed by a 1x1 and a 3x3 convolution with a norm. Further
    levels subsample the previous one by 2, as in mmdet's FPN. Maps of odd size are padded on the
    right and bottom, so that a location of stride s covers the same s pixels as in other pyramids.

    Args:
        in_channels: List with the number of channels C of the map, such as [768]; C must be a
            multiple of 4.
        out_channels: Channels of every level. Defaults to 256.
        num_outs: Number of levels, at least 4. Defaults to 5: up to stride 64, as the RPN of
            Mask R-CNN expects.
        init_cfg: Config of MMEngine's initialisers. Defaults to None: PyTorch's initialisation.

    Raises:
        ConfigError: If an argument is invalid; the message contains its name and value.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        num_outs: int = 5,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.in_channels = _check_in_channels(in_channels)
        self.out_channels = integer('out_channels', out_channels, minimum=1)
        self.num_outs = integer('num_outs', num_outs, minimum=len(SCALES))
        self.levels = nn.ModuleList(
            nn.Sequential(*_rescale(self.in_channels, scale), *_refine(channels, self.out_channels))
            for scale, channels in zip(SCALES, _widths(self.in_channels), strict=True)
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the levels.

        Args:
            inputs: Tuple with one map (B, C, H, W).

        Returns:
            ``num_outs`` maps (B, out_channels, H_i, W_i) of 4, 2, 1, 1/2, 1/4, ... times the
            size, rounded up.

        Raises:
            ConfigError: If there is not exactly one map.
        """
        if len(inputs) != 1:
            raise ConfigError(
                f'SimpleFeaturePyramid requires one map, got {len(inputs)}: set '
                'model.backbone.out_indices to the stage of stride 16.'
            )
        outs = [level(inputs[0]) for level in self.levels]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], kernel_size=1, stride=2))
        return tuple(outs)


def _widths(dim: int) -> tuple[int, ...]:
    """Channels of the levels after rescaling."""
    return dim // 4, dim // 2, dim, dim


def _rescale(dim: int, scale: float) -> list[nn.Module]:
    """Layers that resize a map (B, dim, H, W) by ``scale``."""
    if scale == 4:
        twice = _rescale(dim, 2)
        return [*twice, LayerNorm2d(dim // 2), nn.GELU(), *_rescale(dim // 2, 2)]
    if scale == 2:
        return [nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2)]
    if scale == 0.5:
        return [nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)]
    return []


def _refine(channels: int, out_channels: int) -> list[nn.Module]:
    """The two convolutions of a level, without bias because norms follow."""
    return [
        nn.Conv2d(channels, out_channels, kernel_size=1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    ]


def _check_in_channels(in_channels: Sequence[int]) -> int:
    values = list(in_channels) if is_list(in_channels) else []
    if len(values) != 1 or not is_integer(values[0]) or values[0] < 4 or values[0] % 4:
        raise ConfigError(
            'in_channels of SimpleFeaturePyramid must be a list with one multiple of 4, such as '
            f'[768], got {short_repr(in_channels)}. Set model.backbone.out_indices to one stage.'
        )
    return int(values[0])
