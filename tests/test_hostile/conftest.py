"""Profiles of hypothesis: how many inputs the tests generate."""

import os

from hypothesis import HealthCheck, settings

# Without deadline and database: CI generates the same inputs every time.
_COMMON = dict(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile('fast', max_examples=60, derandomize=True, **_COMMON)
settings.register_profile('thorough', max_examples=400, **_COMMON)
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'fast'))
