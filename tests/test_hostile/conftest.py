"""How many cases are drawn, and the count of those that ran, below pytest's own summary."""

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[2]
COUNTS = Counter()

# Without deadline and database, and in CI the same cases every time.
_COMMON = dict(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile('fast', max_examples=60, derandomize=True, **_COMMON)
settings.register_profile('thorough', max_examples=400, **_COMMON)
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'fast'))


@pytest.fixture
def count(request):
    """Call it once per case."""

    def _count():
        COUNTS[request.node.name.partition('[')[0]] += 1

    return _count


def pytest_terminal_summary(terminalreporter):
    if COUNTS:
        terminalreporter.write_line(f'{sum(COUNTS.values())} hostile cases')
        for name, cases in COUNTS.items():
            terminalreporter.write_line(f'  {cases:6d} {name}')
