"""What fitting a checkpoint changed, in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmfocalnet.text import listed


@dataclass
class FitReport:
    """What fitting changed.

    Attributes:
        padded: Count of zero-padded kernels per change of size, such as ``'3x3 to 9x9'``.
        cropped: Count of centre-cropped kernels, likewise.
        energy_cut: Share of the cropped kernels' squared norm that was cut, per change.
        embedding: Changes of the patch embedding, such as ``'input channels 3 to 1'``.
        levels: Count of blocks with added levels per change, such as ``'2 to 3'``.
        function_kept: Whether those levels were added so that the outputs stay the same.
        dropped: Keys of the checkpoint left out on purpose (classifier, other outputs).
        fresh: Keys of the model that keep their initial values.
    """

    padded: Counter[str] = field(default_factory=Counter)
    cropped: Counter[str] = field(default_factory=Counter)
    energy_cut: dict[str, float] = field(default_factory=dict)
    embedding: list[str] = field(default_factory=list)
    levels: Counter[str] = field(default_factory=Counter)
    function_kept: bool = False
    dropped: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        where = (
            'before their last, which keeps the function'
            if self.function_kept
            else 'after their last, which changes the global context'
        )
        parts = [
            _counted(self.padded, 'kernels zero-padded'),
            _counted(self.cropped, 'kernels cropped to their centre', self.energy_cut),
            listed(self.embedding, 'patch embedding changed'),
            _counted(self.levels, f'blocks given more focal levels {where}'),
            listed(self.dropped, 'dropped on purpose'),
            listed(self.fresh, 'kept at their initial values'),
        ]
        return '; '.join(part for part in parts if part) or 'every tensor as it is'


def _counted(counter: Counter[str], what: str, cut: Mapping[str, float] | None = None) -> str:
    changes = ', '.join(
        f'{change}: {count}' + (f' with {cut[change]:.1%} of their energy cut' if cut else '')
        for change, count in sorted(counter.items())
    )
    return f'{sum(counter.values())} {what} ({changes})' if counter else ''
