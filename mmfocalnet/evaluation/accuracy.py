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
    """Percentage of images whose label is among the k classes with the highest scores.

    Logged as ``accuracy/top1``, ``accuracy/top5``, ...

    Args:
        topk: Values of k. Defaults to (1, 5), ImageNet's.
        kwargs: Other arguments of MMEngine's ``BaseMetric``.

    Raises:
        ConfigError: If a k is not a positive integer, or exceeds the number of classes when
            measured.
    """

    default_prefix = 'accuracy'

    def __init__(self, topk: Sequence[int] = (1, 5), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not is_list(topk) or not topk:
            raise ConfigError(
                f'topk of TopKAccuracy must be a list of integers such as (1, 5), got {topk!r}.'
            )
        self.topk = tuple(integer('topk', k, minimum=1) for k in topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Store for each image how many classes have a higher score than the label."""
        for sample in data_samples:
            scores, label = sample['pred_scores'], sample['gt_label']
            if max(self.topk) > len(scores):
                raise ConfigError(
                    f'TopKAccuracy(topk={self.topk}) needs {max(self.topk)} classes, but the '
                    f'model has {len(scores)}: set topk of val_evaluator and test_evaluator.'
                )
            # Ties and NaN count as higher, so that constant scores are not counted as correct.
            self.results.append(int((~(scores < scores[label])).sum()) - 1)

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """Percentage of images with a rank below k, for every k."""
        return {
            f'top{k}': 100 * sum(rank < k for rank in results) / len(results) for k in self.topk
        }
