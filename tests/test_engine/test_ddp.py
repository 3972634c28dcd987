"""Process groups on the CPU."""

import pytest
from mmengine.config import Config

from mmfocalnet.engine.ddp import init_cpu_processes
from mmfocalnet.errors import ConfigError


@pytest.mark.parametrize('timeout', ['soon', 0])
def test_an_invalid_timeout(timeout):
    cfg = Config(dict(launcher='pytorch', env_cfg=dict(dist_cfg=dict(timeout=timeout))))
    with pytest.raises(ConfigError, match='dist_cfg'):
        init_cpu_processes(cfg)
