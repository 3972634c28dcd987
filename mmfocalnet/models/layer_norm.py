"""The LayerNorm of all models."""

from torch import Tensor, nn

from mmfocalnet.compat.tracing import is_compiling
from mmfocalnet.ops import layer_norm


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` over the channels that stays one operator in compiled models.

    The code that compilers generate for it on the CPU takes five times as long.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        if is_compiling():
            return layer_norm(x, self.weight, self.bias, self.eps)
        return super().forward(x)
