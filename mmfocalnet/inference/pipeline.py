"""The test pipeline of a config, for images in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope

from mmfocalnet.datasets.dataset_configs import find_datasets
from mmfocalnet.errors import ConfigError
from mmfocalnet.inference.images import ImageError, check_image
from mmfocalnet.registry import type_name


def find_test_dataset(cfg: Config) -> dict[str, Any]:
    """Return the test dataset of a config, without its wrappers.

    Raises:
        ConfigError: If there is none.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    if not dataset:
        raise ConfigError(
            f'{cfg.filename} has no test_dataloader, whose pipeline preprocesses the images. Use '
            'a config that has one, such as those in configs/.'
        )
    return next(find_datasets(dataset))


def build_pipeline(cfg: Config) -> Callable[[np.ndarray], dict[str, Any]]:
    """Build the test pipeline of a config, without the steps that load files.

    Args:
        cfg: The config.

    Returns:
        A function from an image (BGR, uint8, (H, W, 3)) to ``inputs``, uint8 (3, H', W'), and
        ``data_samples``. It raises `ImageError` for other arrays, and for images whose shorter
        side would scale to less than one pixel.

    Raises:
        ConfigError: If the config has no test dataset.
    """
    _, *steps = find_test_dataset(cfg).pipeline
    steps = [step for step in steps if not str(type_name(step)).startswith('Load')]
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        pipeline = Compose(steps)

    def preprocess(image: np.ndarray) -> dict[str, Any]:
        check_image(image)
        size = image.shape[:2]
        try:
            return pipeline(
                dict(img=image, img_path=None, img_id=0, img_shape=size, ori_shape=size)
            )
        except Exception as error:  # OpenCV's own type
            raise ImageError(
                f'The test pipeline of {cfg.filename} fails on an image of {size[1]}x{size[0]} '
                'pixels, which may be too narrow to scale. Crop it.'
            ) from error

    return preprocess
