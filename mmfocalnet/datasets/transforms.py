"""Transforms for classification that mmcv and mmdet lack."""

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
    """Crop a region of random area and aspect ratio and resize it to a square.

    Args:
        size: Side of the result in pixels.
        area: Minimum and maximum area, as a share of the image. Defaults to (0.08, 1).
        aspect: Minimum and maximum of width / height. Defaults to (3/4, 4/3).
        interpolation: As in `mmcv.imresize`. Defaults to ``'bicubic'``.
        backend: As in `mmcv.imresize`. Pillow, unlike OpenCV, antialiases. Defaults to
            ``'pillow'``.

    Raises:
        ConfigError: If ``area`` or ``aspect`` is out of range.
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
                'RandomResizedCrop needs area=(minimum, maximum) above 0 and up to 1 and '
                f'aspect=(minimum, maximum) above 0, got area={area} and aspect={aspect}.'
            )
        self.size = size
        self.area = area
        self.aspect = aspect
        self.interpolation = interpolation
        self.backend = backend

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replace ``img`` (H, W, C) by (size, size, C) and set ``img_shape``."""
        top, left, height, width = self._sample_region(*results['img'].shape[:2])
        region = results['img'][top : top + height, left : left + width]
        results['img'] = mmcv.imresize(
            region, (self.size, self.size), interpolation=self.interpolation, backend=self.backend
        )
        results['img_shape'] = (self.size, self.size)
        return results

    @cache_randomness
    def _sample_region(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width; the centre of the image if ten samples do not fit."""
        for _ in range(10):
            area = height * width * np.random.uniform(*self.area)
            # In log space, so that an aspect is as likely as its inverse.
            aspect = math.exp(np.random.uniform(*map(math.log, self.aspect)))
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h <= height and 0 < w <= width:
                return np.random.randint(height - h + 1), np.random.randint(width - w + 1), h, w
        h = min(height, round(width / self.aspect[0]))
        w = min(width, round(height * self.aspect[1]))
        return (height - h) // 2, (width - w) // 2, h, w


@register(TRANSFORMS)
class PackImage(BaseTransform):
    """Pack the inputs of a classifier.

    Returns ``inputs``, uint8 (C, H, W), and ``data_samples``, a ``BaseDataElement`` with
    ``gt_label`` and, for error messages and drawings, ``img_path``.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Pack ``img`` (H, W, C) and ``gt_label``."""
        image = np.ascontiguousarray(results['img'].transpose(2, 0, 1))
        sample = BaseDataElement(metainfo={'img_path': results.get('img_path')})
        if 'gt_label' in results:
            sample.gt_label = torch.tensor(results['gt_label'])
        return {'inputs': torch.from_numpy(image), 'data_samples': sample}
