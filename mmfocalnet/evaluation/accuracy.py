"""The accuracy of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from mmfocalnet.arguments import integer, is_list
from mmfocalnet.errors import ConfigError
from mmfocalnet.registry import register


@register(METRICS)
class TopKAccuracy(BaseMetric):
    """How often the right class is among the k likeliest, in percent.

    Logged as ``accuracy/top1``, ``accuracy/top5``, ...

    Args:
        topk: The numbers k. Defaults to (1, 5), ImageNet's.
        kwargs: What MMEngine's ``BaseMetric`` takes.

    Raises:
        ConfigError: If they are not whole numbers, or, when measured, if there are less than k
            classes.
    """

    default_prefix = 'accuracy'

    def __init__(self, topk: Sequence[int] = (1, 5), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not is_list(topk) or not topk:
            raise ConfigError(
                f'topk of TopKAccuracy must list numbers such as (1, 5), got {topk!r}.'
            )
        self.topk = tuple(integer('topk', k, minimum=1) for k in topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Note of each image at which place its class came, counted from 0."""
        for sample in data_samples:
            scores, label = sample['pred_scores'], sample['gt_label']
            if max(self.topk) > len(scores):
                raise ConfigError(
                    f'TopKAccuracy(topk={self.topk}) needs {max(self.topk)} classes, but the '
                    f'model has {len(scores)}: set topk of val_evaluator and test_evaluator.'
                )
            # Of classes with the same score the others come first, and so do they where scores
            # are NaN: a constant is no success.
            self.results.append(int((~(scores < scores[label])).sum()) - 1)

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """Share of images with a place below k, for every k."""
        return {
            f'top{k}': 100 * sum(place < k for place in results) / len(results) for k in self.topk
        }
