"""Replacement for `panopticapi`, which no package registry has and mmdet needs for panoptic data.

mmdet uses five of its names: `PQStat`, `OFFSET` and `VOID` of `panopticapi.evaluation`, `rgb2id`
and `id2rgb` of `panopticapi.utils`. They are implemented here from COCO's panoptic format and the
definition of panoptic quality (Kirillov et al. 2019, Sec. 4.1). mmdet itself matches the segments,
with void pixels and crowd regions. An installed panopticapi is left untouched.

The results equal the original's with two exceptions: an average over no categories is 0 instead of
a ZeroDivisionError, and an id that has no colour raises an error instead of giving a wrong colour.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from mmfocalnet.compat.module_finder import ModuleFinder

VOID = 0  # the id of pixels without a label
OFFSET = 256**3  # one more than the largest id

# The modules of mmdet (3.3.0 and 3.5.1) that import panopticapi when they are imported, and set
# the names to None if it is missing. Other modules import it when they use it.
MMDET_MODULES = (
    'mmdet.evaluation.functional.panoptic_utils',
    'mmdet.evaluation.metrics.coco_panoptic_metric',
    'mmdet.apis.det_inferencer',
)


# COCO's panoptic format: a PNG whose colours are the ids of segments, id = R + 256 G + 256^2 B.


def rgb2id(color: np.ndarray | Sequence[int]) -> np.ndarray | int:
    """Convert colours to ids.

    Args:
        color: An RGB image (H, W, 3), or one colour.

    Returns:
        The ids, int32 (H, W), or one id.
    """
    # uint8 would overflow; mmdet keeps label maps in int32, which holds every id.
    channels = np.asarray(color).astype(np.int32)
    ids = channels[..., 0] + 256 * channels[..., 1] + 256**2 * channels[..., 2]
    return int(ids) if ids.ndim == 0 else ids


def id2rgb(id_map: np.ndarray | int) -> np.ndarray | list[int]:
    """Convert ids to colours.

    Args:
        id_map: Ids (H, W), or one id.

    Returns:
        An RGB image, uint8 (H, W, 3), or one colour.

    Raises:
        ValueError: If an id is negative or needs more than three bytes.
    """
    ids = np.asarray(id_map)
    if ids.size and (ids.min() < 0 or ids.max() >= OFFSET):
        raise ValueError(
            f'panoptic ids must be from 0 to {OFFSET - 1}, got {ids.min()} to {ids.max()}'
        )
    # (H, W) -> (H, W, 3), one byte each.
    colors = (ids.astype(np.int32)[..., None] >> np.array([0, 8, 16], np.int32)) & 255
    return colors.astype(np.uint8) if isinstance(id_map, np.ndarray) else colors.tolist()


@dataclass
class CategoryStat:
    """Counts of one category and its panoptic quality.

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
        """Whether the category is neither in the truth nor predicted, and so not averaged."""
        return self.tp + self.fp + self.fn == 0

    @property
    def qualities(self) -> dict[str, float]:
        """PQ = SQ * RQ; SQ, the mean IoU of the matched pairs; RQ, the F1 score of the matching."""
        f1_denominator = self.tp + (self.fp + self.fn) / 2
        return dict(
            pq=float(self.iou / (f1_denominator or 1)),
            sq=float(self.iou / (self.tp or 1)),
            rq=self.tp / (f1_denominator or 1),
        )


class PQStat:
    """One `CategoryStat` per category id; `+=` adds those of other images.

    Not a dict, because MMEngine converts dicts when it sends them between processes.
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
        """Average the qualities over the categories in the truth or in the prediction.

        Args:
            categories: COCO's categories by id, each with `isthing`.
            isthing: Whether to take things or stuff; None for both.

        Returns:
            The averages `pq`, `sq` and `rq` (0 to 1) with the number of categories `n`, and the
            qualities of each category by id, zeros for those not averaged.
        """
        stats = {
            category_id: self.per_category.get(category_id, CategoryStat())
            for category_id, category in categories.items()
            if isthing is None or bool(category['isthing']) == isthing
        }
        counted = [stat.qualities for stat in stats.values() if not stat.is_empty]
        means = {
            name: sum(qualities[name] for qualities in counted) / (len(counted) or 1)
            for name in ('pq', 'sq', 'rq')
        }
        each = {category_id: stat.qualities for category_id, stat in stats.items()}
        return {**means, 'n': len(counted)}, each


# The names that each module provides; parents first, the order in which they import.
MODULES = {
    'panopticapi': dict(),
    'panopticapi.utils': dict(rgb2id=rgb2id, id2rgb=id2rgb),
    'panopticapi.evaluation': dict(PQStat=PQStat, OFFSET=OFFSET, VOID=VOID),
}


def ensure_panopticapi() -> str:
    """Make `import panopticapi` work as far as mmdet needs it, if it is not installed.

    Can be called repeatedly, and after mmdet was imported. A new process (`spawn`, `forkserver`)
    imports mmfocalnet by itself only if the main script does so outside of
    `if __name__ == '__main__'`; forked processes, MMEngine's default, inherit the replacement.

    Returns:
        What provides the names: 'panopticapi' (installed) or 'mmfocalnet'.
    """
    if not _panopticapi_imports():
        for name in MODULES:
            # An entry of None, or of a partly imported module, would hide the replacement.
            sys.modules.pop(name, None)
        # First, because a broken panopticapi, or a clone of its repository in the working
        # directory, still has a finder.
        sys.meta_path.insert(0, PanopticapiFinder())
        for name in MODULES:
            importlib.import_module(name)
    provider = vars(sys.modules['panopticapi']).get('PROVIDER', 'panopticapi')
    if provider == 'mmfocalnet':
        _fill_in_mmdet()
    return provider


def _panopticapi_imports() -> bool:
    """Return whether the modules import; warn if panopticapi is installed but broken."""
    try:
        for name in MODULES:
            importlib.import_module(name)
    # Old code on a new NumPy raises not only ImportErrors.
    except Exception as error:
        # A folder named panopticapi in the working directory is not an installation: do not warn.
        if not isinstance(error, ModuleNotFoundError) or error.name not in MODULES:
            warnings.warn(
                f'panopticapi is installed but cannot be imported ({error}). '
                'mmfocalnet replaces it.',
                stacklevel=3,
            )
        return False
    return True


def _fill_in_mmdet() -> None:
    """Set the names in the mmdet modules that were imported while panopticapi was missing."""
    names = {'panopticapi': sys.modules['panopticapi']}
    for provided in MODULES.values():
        names |= provided
    for module in filter(None, map(sys.modules.get, MMDET_MODULES)):
        for name, value in names.items():
            if vars(module).get(name, ...) is None:
                setattr(module, name, value)


class PanopticapiFinder(ModuleFinder):
    """Provides `panopticapi` and its modules."""

    names = tuple(MODULES)

    def exec_module(self, module: ModuleType) -> None:
        """Put the names into the module."""
        vars(module).update(MODULES[module.__name__], __doc__=__doc__, PROVIDER='mmfocalnet')
