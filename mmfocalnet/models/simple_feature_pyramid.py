"""A feature pyramid from a single map, for the monolithic FocalNets (Table 13 of the paper)."""

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

SCALES = (4, 2, 1, 0.5)  # of the levels' maps, beside the input's


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W) at each location."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@register(MODELS)
class SimpleFeaturePyramid(BaseModule):
    """Simple feature pyramid of ViTDet (Li et al. 2022, Section 3): all levels from one map.

    A map of stride 16 becomes maps of strides 4 (two transposed convolutions), 8 (one), 16 and
    32 (maximum of 2x2 cells), each followed by a 1x1 and a 3x3 convolution with a norm. As in
    mmdet's FPN, further levels take every second cell of the one before. Maps of odd size are
    padded at the right and bottom, so that a cell of stride s covers the same s pixels as in
    any other pyramid.

    Args:
        in_channels: Channels C of the map, in a list of one as of other necks, such as [768];
            C is a multiple of 4.
        out_channels: Channels of every level. Defaults to 256.
        num_outs: Number of levels, 4 or more. Defaults to 5, which ends with stride 64, as
            the RPN of Mask R-CNN has it.
        init_cfg: Of MMEngine's initialisers. Defaults to None: PyTorch's own.

    Raises:
        ConfigError: If an argument does not fit; the sentence names it.
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
            inputs: The backbone's one map (B, C, H, W), in a tuple.

        Returns:
            ``num_outs`` maps (B, out_channels, H_i, W_i), the largest first: of 4, 2, 1, 1/2,
            1/4, ... times the size, rounded up.

        Raises:
            ConfigError: If there is more than one map.
        """
        if len(inputs) != 1:
            raise ConfigError(
                f'SimpleFeaturePyramid takes one map, got {len(inputs)}: choose one stage in '
                'model.backbone.out_indices, that of stride 16.'
            )
        outs = [level(inputs[0]) for level in self.levels]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], kernel_size=1, stride=2))
        return tuple(outs)


def _widths(dim: int) -> tuple[int, ...]:
    """Channels of the levels after rescaling."""
    return dim // 4, dim // 2, dim, dim


def _rescale(dim: int, scale: float) -> list[nn.Module]:
    """Layers from the map (B, dim, H, W) to one of ``scale`` times its size."""
    if scale == 4:
        twice = _rescale(dim, 2)
        return [*twice, LayerNorm2d(dim // 2), nn.GELU(), *_rescale(dim // 2, 2)]
    if scale == 2:
        return [nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2)]
    if scale == 0.5:
        return [nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)]
    return []


def _refine(channels: int, out_channels: int) -> list[nn.Module]:
    """The two convolutions of a level; the norms after them have the bias."""
    return [
        nn.Conv2d(channels, out_channels, kernel_size=1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    ]


def _check_in_channels(in_channels: Sequence[int]) -> int:
    values = list(in_channels) if is_list(in_channels) else []
    if len(values) != 1 or not is_integer(values[0]) or values[0] < 1:
        raise ConfigError(
            'SimpleFeaturePyramid takes one map: in_channels must list its channels, such as '
            f'[768], got {short_repr(in_channels)}; choose one stage in '
            'model.backbone.out_indices.'
        )
    if values[0] % 4:
        raise ConfigError(
            f'in_channels of SimpleFeaturePyramid must be a multiple of 4, got {values[0]}: two '
            'transposed convolutions halve it.'
        )
    return integer('in_channels', values[0], minimum=4)
