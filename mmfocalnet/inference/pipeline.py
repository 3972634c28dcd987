"""Preparing pictures in memory as a config's test pipeline does with files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope

from mmfocalnet.datasets.dataset_configs import find_datasets
from mmfocalnet.errors import ConfigError
from mmfocalnet.inference.images import ImageError
from mmfocalnet.registry import type_name


def find_test_dataset(cfg: Config) -> dict[str, Any]:
    """The dataset of a config's tests, without what wraps it.

    Raises:
        ConfigError: If there is none.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    if not dataset:
        raise ConfigError(
            f'{cfg.filename} has no test_dataloader, whose dataset tells how to prepare pictures: '
            'give a config that has one, such as those in configs/.'
        )
    return next(find_datasets(dataset))


def build_pipeline(cfg: Config) -> Callable[[np.ndarray], dict[str, Any]]:
    """Build the test pipeline of a config, without labels.

    Args:
        cfg: The config.

    Returns:
        A function from a picture (BGR, uint8, (H, W, 3)) to ``inputs``, uint8 (3, H', W'), and
        ``data_samples``. It raises `ImageError` for other arrays and for pictures that scale to
        no pixel.

    Raises:
        ConfigError: If the config has no tests.
    """
    _, *steps = find_test_dataset(cfg).pipeline
    without_labels = [step for step in steps if not str(type_name(step)).startswith('Load')]
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        pipeline = Compose(without_labels)

    def prepare(image: np.ndarray) -> dict[str, Any]:
        if not isinstance(image, np.ndarray):
            raise ImageError(
                f'{image!r} is no picture in memory; expected an array (H, W, 3) of uint8, BGR: '
                'read it with mmfocalnet.inference.read_image.'
            )
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(
                f'A picture has shape {image.shape} and type {image.dtype}; expected (H, W, 3) '
                'and uint8, BGR: read it with mmfocalnet.inference.read_image.'
            )
        try:
            size = image.shape[:2]
            return pipeline(
                dict(img=image, img_path=None, img_id=0, img_shape=size, ori_shape=size)
            )
        except Exception as error:  # OpenCV's own type, for sides that scale to no pixel
            raise ImageError(
                f'A picture of {image.shape[1]}x{image.shape[0]} pixels does not pass the test '
                f'pipeline of {cfg.filename}; expected one that is not so narrow: cut it.'
            ) from error

    return prepare
