"""LayerNorm in compiled models."""

from torch import Tensor, nn

from mmfocalnet.compat.tracing import is_compiling
from mmfocalnet.ops import is_unmodified, layer_norm


def normalize(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Call a norm; in compiled code as one operator.

    The code that Inductor generates for its gradients on the CPU takes several times as long.

    Args:
        norm: A LayerNorm over the last dimension.
        x: Features (..., C).

    Returns:
        Features (..., C).
    """
    is_affine = norm.weight is not None and norm.bias is not None
    if is_compiling() and is_affine and is_unmodified(norm, nn.LayerNorm):
        return layer_norm(x, norm.weight, norm.bias, norm.eps)
    return norm(x)
