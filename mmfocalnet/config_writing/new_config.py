"""A recipe for other data: classes, files, metrics, image scale and schedule."""

from __future__ import annotations

import copy

from mmengine.config import Config

from mmfocalnet.config_writing.class_counts import set_class_counts
from mmfocalnet.config_writing.data_settings import set_data
from mmfocalnet.config_writing.image_scale import set_image_scale
from mmfocalnet.config_writing.labels import Labels
from mmfocalnet.config_writing.schedule import set_schedule


def new_config(
    recipe: Config, labels: Labels, epochs: int | None = None, batch: int | None = None
) -> Config:
    """Change a copy of a recipe so that it trains on other data.

    Args:
        recipe: The config.
        labels: The data.
        epochs: Number of epochs. Defaults to None: see `set_schedule`.
        batch: Images per process and iteration. Defaults to None: the recipe's.

    Raises:
        ConfigError: If the recipe does not fit the labels.
    """
    cfg = copy.deepcopy(recipe)
    set_data(cfg, labels)
    set_class_counts(cfg, recipe, labels)
    set_image_scale(cfg, labels.size)
    set_schedule(cfg, labels.splits['train'].count, epochs, batch)
    return cfg
