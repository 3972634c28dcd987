"""The complete computation of an exported file: preprocessing, padding, network, outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfocalnet.errors import ConfigError
from mmfocalnet.models.focalnet import pad_to_multiple


class Preprocessing(nn.Module):
    """Channel order, normalization and padding of a model's data preprocessor.

    Args:
        source: The data preprocessor of mmdet, mmseg or MMEngine.

    Attributes:
        channels: Order of the channels after preprocessing, ``'RGB'`` or ``'BGR'``.
        divisor: Height and width are padded to multiples of it.

    Raises:
        ConfigError: If it is of another class, or pads images to a fixed size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        # The names of MMEngine and mmdet, and of upstream's mmseg.
        names = ('_channel_conversion', 'channel_conversion')
        converts = [getattr(source, name) for name in names if hasattr(source, name)]
        if not converts:
            raise ConfigError(
                f'The data_preprocessor {type(source).__name__} cannot be exported: use '
                'DetDataPreprocessor, SegDataPreProcessor or ImgDataPreprocessor.'
            )
        self.channels = 'RGB' if converts[0] else 'BGR'
        self.divisor, self.value = _padding(source)
        self.register_buffer('mean', self._per_channel(source, 'mean', 0.0))
        self.register_buffer('std', self._per_channel(source, 'std', 1.0))

    def forward(self, images: Tensor) -> Tensor:
        """Normalize BGR images (B, H, W, 3) of any type: (B, 3, H, W), float32, not padded."""
        images = images.permute(0, 3, 1, 2).float()
        if self.channels == 'RGB':
            images = images.flip(1)
        return (images - self.mean) / self.std

    def pad(self, images: Tensor) -> Tensor:
        """Pad normalized images (B, 3, H, W)."""
        return pad_to_multiple(images, self.divisor, self.value)

    @staticmethod
    def _per_channel(source: nn.Module, name: str, default: float) -> Tensor:
        values = getattr(source, name, torch.tensor(default))
        return values.detach().float().flatten().expand(3).reshape(3, 1, 1).clone()


class ExportGraph(nn.Module):
    """A network with its preprocessing.

    Args:
        network: Computes a tuple of tensors from padded normalized images (B, 3, H, W), and from
            their height and width without padding. It has ``output_names``.
        preprocessing: That of the model.
        raw: Whether the input is normalized already. Defaults to False.

    Attributes:
        output_names: Names of the outputs.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, raw: bool = False) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing
        self.raw = raw
        self.output_names: tuple[str, ...] = tuple(network.output_names)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Run the model.

        Args:
            image: BGR images (B, H, W, 3) from 0 to 255, uint8 or float32; with ``raw``,
                normalized images (B, 3, H, W), float32.
        """
        images = image if self.raw else self.preprocessing(image)
        height, width = images.shape[2:]
        return self.network(self.preprocessing.pad(images), height, width)


def weight_dtype(network: nn.Module) -> torch.dtype:
    """The type of a network's weights, which is that of its inputs."""
    return next(network.parameters()).dtype


def _padding(source: nn.Module) -> tuple[int, float]:
    """Divisor and value of the padding of images in tests."""
    if not hasattr(source, 'size_divisor'):  # mmseg's pads in tests by its test_cfg only
        return source.pad_size_divisor, source.pad_value
    settings = source.test_cfg or {}
    if settings.get('size') is not None:
        raise ConfigError(
            'data_preprocessor.test_cfg.size cannot be exported: use size_divisor instead, or '
            'remove it.'
        )
    return settings.get('size_divisor') or 1, source.pad_val
