"""Stand-in for `panopticapi`, which no registry has and without which mmdet refuses panoptic data.

mmdet loads, scores and saves panoptic results with five names of it, which are made here from
COCO's panoptic format and the definition of panoptic quality (Kirillov et al. 2019, Sec. 4.1):
`PQStat`, `OFFSET` and `VOID` of `panopticapi.evaluation`, `rgb2id` and `id2rgb` of
`panopticapi.utils`. The matching of segments, with what void pixels and crowd regions do to it,
is mmdet's own. An installed panopticapi is left untouched.

The results are the original's with two exceptions: an average over no categories is 0 rather
than a ZeroDivisionError, and an id that has no colour is an error rather than another id's colour.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from mmfocalnet.compat.stand_in import StandIn

VOID = 0  # the id of pixels without a label
OFFSET = 256**3  # one more than the largest id

# Parents first: the order in which they import.
_MODULES = ('panopticapi', 'panopticapi.utils', 'panopticapi.evaluation')

# The mmdet modules (3.3.0 and 3.5.1) that look for panopticapi when they are imported, and set the
# names to None where they find none. Others look when they are used.
_MMDET_MODULES = (
    'mmdet.evaluation.functional.panoptic_utils',
    'mmdet.evaluation.metrics.coco_panoptic_metric',
    'mmdet.apis.det_inferencer',
)


# ------------------------------------------------------------------------------------------------
# Registration
# ------------------------------------------------------------------------------------------------


def ensure_panopticapi() -> str:
    """Make `import panopticapi` work as far as mmdet needs it, where it is not installed.

    Harmless to call again, and mmdet may have been imported before. A process that Python starts
    afresh (`spawn`, `forkserver`) imports mmfocalnet again by itself if the main script does so
    outside of `if __name__ == '__main__'`; forked ones, MMEngine's default, inherit the stand-in.

    Returns:
        str: What provides the names: 'panopticapi' (installed) or 'mmfocalnet'.
    """
    if not _panopticapi_imports():
        for name in _MODULES:
            # An entry of None, or of a half-made module, would hide the stand-in.
            sys.modules.pop(name, None)
        # First, because a broken panopticapi, or a clone of its repository in the working
        # directory, still has a finder of its own.
        sys.meta_path.insert(0, _StandIn())
        for name in _MODULES:
            importlib.import_module(name)
    provider = vars(sys.modules['panopticapi']).get('PROVIDER', 'panopticapi')
    if provider == 'mmfocalnet':
        _fill_in_mmdet()
    return provider


def _panopticapi_imports() -> bool:
    """Whether all that mmdet imports is there; a panopticapi that is broken gets a warning."""
    try:
        for name in _MODULES:
            importlib.import_module(name)
    # Any exception: old code on a new NumPy does not fail with ImportErrors alone.
    except Exception as error:
        # Missing parts are no sign of an installation: a folder of that name is enough for them.
        if not isinstance(error, ModuleNotFoundError) or error.name not in _MODULES:
            warnings.warn(
                f'panopticapi is installed but does not import ({error}), so mmfocalnet stands in '
                'for it.',
                stacklevel=3,
            )
        return False
    return True


def _fill_in_mmdet() -> None:
    """Give the names to the mmdet modules that were imported while there was no panopticapi."""
    names = dict(
        panopticapi=sys.modules['panopticapi'],
        **_provided('panopticapi.utils'),
        **_provided('panopticapi.evaluation'),
    )
    for module in filter(None, map(sys.modules.get, _MMDET_MODULES)):
        for name, value in names.items():
            if vars(module).get(name, ...) is None:
                setattr(module, name, value)


class _StandIn(StandIn):
    """Finds and fills `panopticapi`."""

    names = _MODULES

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(_provided(module.__name__), __doc__=__doc__, PROVIDER='mmfocalnet')


def _provided(module: str) -> dict[str, Any]:
    return {
        'panopticapi': dict(),
        'panopticapi.utils': dict(rgb2id=rgb2id, id2rgb=id2rgb),
        'panopticapi.evaluation': dict(PQStat=PQStat, OFFSET=OFFSET, VOID=VOID),
    }[module]


# ------------------------------------------------------------------------------------------------
# COCO's panoptic format: a PNG whose colours are the ids of segments, id = R + 256 G + 256^2 B
# ------------------------------------------------------------------------------------------------


def rgb2id(color: np.ndarray | Sequence[int]) -> np.ndarray | int:
    """The ids of colours.

    Args:
        color (np.ndarray | Sequence[int]): An RGB image, shape (H, W, 3), or one colour.

    Returns:
        np.ndarray | int: The ids, shape (H, W) and int32, or one.
    """
    # In uint8 the sum overflows; int32 holds every id, and mmdet keeps label maps in this dtype.
    channels = np.asarray(color).astype(np.int32)
    ids = channels[..., 0] + 256 * channels[..., 1] + 256**2 * channels[..., 2]
    return int(ids) if ids.ndim == 0 else ids


def id2rgb(id_map: np.ndarray | int) -> np.ndarray | list[int]:
    """The colours of ids.

    Args:
        id_map (np.ndarray | int): Ids, shape (H, W), or one.

    Returns:
        np.ndarray | list[int]: An RGB image, shape (H, W, 3) and uint8, or one colour.

    Raises:
        ValueError: An id is negative, or larger than three bytes hold.
    """
    ids = np.asarray(id_map)
    if ids.size and (ids.min() < 0 or ids.max() >= OFFSET):
        raise ValueError(
            f'panoptic ids must be from 0 to {OFFSET - 1}, got {ids.min()} to {ids.max()}'
        )
    # (H, W) -> (H, W, 3): one byte each.
    colors = (ids.astype(np.int32)[..., None] >> np.array([0, 8, 16], np.int32)) & 255
    return colors.astype(np.uint8) if isinstance(id_map, np.ndarray) else colors.tolist()


# ------------------------------------------------------------------------------------------------
# Panoptic quality
# ------------------------------------------------------------------------------------------------


@dataclass
class CategoryStat:
    """What the panoptic quality of one category is made of, and the quality.

    Attributes:
        tp: Matched pairs of a predicted and a true segment (IoU above 0.5).
        fp: Predicted segments without a match.
        fn: True segments without a match.
        iou: Sum of the IoU of the matched pairs.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou: float = 0.0

    def __iadd__(self, other: CategoryStat) -> CategoryStat:
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn
        self.iou += other.iou
        return self

    @property
    def is_empty(self) -> bool:
        """Whether the category neither occurs nor is predicted: it does not count then."""
        return self.tp + self.fp + self.fn == 0

    @property
    def sq(self) -> float:
        """Segmentation quality: mean IoU of the matched pairs."""
        return float(self.iou / self.tp) if self.tp else 0.0

    @property
    def rq(self) -> float:
        """Recognition quality: the F1 score of the matching."""
        return 0.0 if self.is_empty else self.tp / self._denominator

    @property
    def pq(self) -> float:
        """Panoptic quality, SQ times RQ."""
        return 0.0 if self.is_empty else float(self.iou / self._denominator)

    @property
    def _denominator(self) -> float:
        return self.tp + (self.fp + self.fn) / 2


class PQStat:
    """One `CategoryStat` per category id; `+=` adds those of other images.

    Not a dict: MMEngine would take it apart on its way from one process to another.
    """

    def __init__(self) -> None:
        self.per_category: defaultdict[int, CategoryStat] = defaultdict(CategoryStat)

    def __getitem__(self, category_id: int) -> CategoryStat:
        return self.per_category[category_id]

    def __iadd__(self, other: PQStat) -> PQStat:
        for category_id, stat in other.per_category.items():
            own = self[category_id]
            own += stat
        return self

    def pq_average(
        self, categories: Mapping[int, Mapping], isthing: bool | None
    ) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
        """Mean qualities over categories, without those that neither occur nor are predicted.

        Args:
            categories (Mapping[int, Mapping]): COCO's categories by id, each with `isthing`.
            isthing (bool | None): Whether to take the things or the stuff; None for both.

        Returns:
            tuple: The means, `pq`, `sq` and `rq` (from 0 to 1) and how many categories they are
            over, `n`; and the qualities of each category by id, zeros for those left out.
        """
        stats = {
            category_id: self.per_category.get(category_id, CategoryStat())
            for category_id, category in categories.items()
            if isthing is None or bool(category['isthing']) == isthing
        }
        counted = [stat for stat in stats.values() if not stat.is_empty]
        means = {name: _mean(getattr(stat, name) for stat in counted) for name in _QUALITIES}
        each = {
            category_id: {name: getattr(stat, name) for name in _QUALITIES}
            for category_id, stat in stats.items()
        }
        return {**means, 'n': len(counted)}, each


_QUALITIES = ('pq', 'sq', 'rq')


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0
