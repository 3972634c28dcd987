"""The backbone alone, for `ExportGraph`."""

from __future__ import annotations

from torch import Tensor, nn

from mmfocalnet.deployment.graph import weight_dtype


class BackboneNetwork(nn.Module):
    """Features of a backbone.

    Args:
        backbone: The backbone, with ``out_indices``.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.output_names = tuple(f'stage{i}' for i in backbone.out_indices)

    def forward(self, images: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        """Return one float32 map (B, C_i, H_i, W_i) per stage, of the padded images."""
        return tuple(out.float() for out in self.backbone(images.to(weight_dtype(self))))
