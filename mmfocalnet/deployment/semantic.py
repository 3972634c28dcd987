"""Segmentors of mmseg, for `ExportGraph`."""

from __future__ import annotations

import torch
from mmdet.models.layers import MSDeformAttnPixelDecoder
from mmseg.models import CascadeEncoderDecoder, EncoderDecoder
from mmseg.models.decode_heads import Mask2FormerHead
from torch import Tensor, nn
from torch.nn import functional as F

from mmfocalnet.deployment.graph import weight_dtype
from mmfocalnet.deployment.mask2former import PixelDecoder, PositionEncoding
from mmfocalnet.errors import ConfigError


class SemanticNetwork(nn.Module):
    """Logits of a segmentor of mmseg, computed from the complete image.

    Args:
        model: The segmentor. Its auxiliary head is removed; adaptive pooling, the pixel decoder and
            the position encodings of Mask2Former are replaced.
        grid_sample: Whether deformable attention uses `torch.nn.functional.grid_sample`. Defaults
            to True.

    Raises:
        ConfigError: If it is neither an ``EncoderDecoder`` nor a ``CascadeEncoderDecoder``, or
            has one output for two classes.
    """

    output_names = ('seg_logits',)

    def __init__(self, model: nn.Module, grid_sample: bool = True) -> None:
        super().__init__()
        if type(model) not in (EncoderDecoder, CascadeEncoderDecoder):
            raise ConfigError(
                f'{type(model).__name__} cannot be exported: use EncoderDecoder or '
                'CascadeEncoderDecoder, or --backbone-only.'
            )
        last = model.decode_head[-1] if type(model) is CascadeEncoderDecoder else model.decode_head
        if getattr(last, 'out_channels', None) == 1:
            raise ConfigError(
                'decode_head.out_channels=1 cannot be exported, because its threshold is not in '
                'the outputs: train with out_channels=2, or use --backbone-only.'
            )
        self.model = model
        if model.with_auxiliary_head:
            del model.auxiliary_head
        head = model.decode_head
        if isinstance(head, Mask2FormerHead):
            head.decoder_positional_encoding = PositionEncoding(head.decoder_positional_encoding)
        for module in list(model.modules()):
            for name, child in module.named_children():
                if type(child) is nn.AdaptiveAvgPool2d:
                    setattr(module, name, AdaptiveAveragePooling(child.output_size))
                elif type(child) is MSDeformAttnPixelDecoder:
                    setattr(module, name, PixelDecoder(child, grid_sample))

    def forward(self, images: Tensor, height: int, width: int) -> tuple[Tensor]:
        """Return logits, or scores from Mask2Former, (B, classes, height, width)."""
        logits = self._predict(images.to(weight_dtype(self)))
        return (logits[:, :, :height, :width].float(),)

    def _predict(self, images: Tensor) -> Tensor:
        size = tuple(images.shape[2:])
        head = self.model.decode_head
        if not isinstance(head, Mask2FormerHead):
            meta = dict(img_shape=size, pad_shape=size, ori_shape=size)
            return self.model.encode_decode(images, [meta])
        # As its `predict`, which copies the size to data samples: impossible for symbols.
        logits, masks = (outs[-1] for outs in head(self.model.extract_feat(images), []))
        masks = F.interpolate(masks, size=size, mode='bilinear', align_corners=False)
        scores = logits.softmax(-1)[..., :-1]
        return torch.einsum('bqc,bqhw->bchw', scores, masks.sigmoid())


class AdaptiveAveragePooling(nn.Module):
    """`torch.nn.AdaptiveAvgPool2d` as two matrix products, which ONNX has for dynamic sizes.

    Args:
        output_size: Size or (height, width) of the result; None keeps that of the input.
    """

    def __init__(self, output_size: int | tuple[int | None, int | None]) -> None:
        super().__init__()
        pair = output_size if isinstance(output_size, tuple) else (output_size, output_size)
        self.output_size = pair

    def forward(self, x: Tensor) -> Tensor:
        """Average (B, C, H, W) to (B, C, *output_size)."""
        height, width = self.output_size
        if width is not None:
            x = x @ _averages(x, x.shape[3], width).T
        return x if height is None else _averages(x, x.shape[2], height) @ x


def _averages(like: Tensor, size: int, bins: int) -> Tensor:
    """Matrix (bins, size) that averages a dimension; neighbouring bins may overlap."""
    index = torch.arange(bins, device=like.device).unsqueeze(1)
    start, end = index * size // bins, ((index + 1) * size + bins - 1) // bins
    position = torch.arange(size, device=like.device)
    inside = ((position >= start) & (position < end)).to(like.dtype)
    return inside / (end - start).to(like.dtype)
