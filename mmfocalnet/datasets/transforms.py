"""Transforms for classification that mmcv and mmdet do not have."""

from __future__ import annotations

import math
from typing import Any

import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmengine.registry import TRANSFORMS
from mmengine.structures import BaseDataElement

from mmfocalnet.errors import ConfigError
from mmfocalnet.registry import register


@register(TRANSFORMS)
class RandomResizedCrop(BaseTransform):
    """Cut out a part of random area and aspect and resize it to a square.

    Args:
        size: Side of the result in pixels.
        area: Least and most area of the part, as a share of the image. Defaults to (0.08, 1).
        aspect: Least and most width over height. Defaults to (3/4, 4/3).
        interpolation: As of `mmcv.imresize`. Defaults to ``'bicubic'``.
        backend: Likewise; Pillow's, unlike OpenCV's, smooths where it shrinks. Defaults to
            ``'pillow'``.

    Raises:
        ConfigError: If a number is out of range.
    """

    def __init__(
        self,
        size: int,
        area: tuple[float, float] = (0.08, 1.0),
        aspect: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: str = 'bicubic',
        backend: str = 'pillow',
    ) -> None:
        if not 0 < area[0] <= area[1] <= 1 or not 0 < aspect[0] <= aspect[1]:
            raise ConfigError(
                f'RandomResizedCrop takes area=(least, most) above 0 and up to 1, and '
                f'aspect=(least, most) above 0, got {area} and {aspect}.'
            )
        self.size = size
        self.area = area
        self.aspect = aspect
        self.interpolation = interpolation
        self.backend = backend

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replace ``img`` (H, W, C) by (size, size, C); sets ``img_shape``."""
        top, left, height, width = self._place(*results['img'].shape[:2])
        part = results['img'][top : top + height, left : left + width]
        results['img'] = mmcv.imresize(
            part, (self.size, self.size), interpolation=self.interpolation, backend=self.backend
        )
        results['img_shape'] = (self.size, self.size)
        return results

    @cache_randomness
    def _place(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of the part; the middle where ten draws do not fit."""
        for _ in range(10):
            area = height * width * np.random.uniform(*self.area)
            # Twice as wide is as likely as twice as high.
            aspect = math.exp(np.random.uniform(*map(math.log, self.aspect)))
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h <= height and 0 < w <= width:
                return np.random.randint(height - h + 1), np.random.randint(width - w + 1), h, w
        h = min(height, round(width / self.aspect[0]))
        w = min(width, round(height * self.aspect[1]))
        return (height - h) // 2, (width - w) // 2, h, w


@register(TRANSFORMS)
class PackImage(BaseTransform):
    """Give the model the image as a tensor and its label beside it.

    Adds ``inputs``, uint8 (C, H, W), and ``data_samples``, a ``BaseDataElement`` with
    ``gt_label`` and, for messages and pictures, ``img_path``; everything else is left behind.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Pack ``img`` (H, W, C) and ``gt_label``."""
        image = np.ascontiguousarray(results['img'].transpose(2, 0, 1))
        sample = BaseDataElement(metainfo={'img_path': results.get('img_path')})
        if 'gt_label' in results:
            sample.gt_label = torch.tensor(results['gt_label'])
        return {'inputs': torch.from_numpy(image), 'data_samples': sample}
