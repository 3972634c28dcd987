"""Process groups on the CPU."""

import pytest
from mmengine.config import Config

from mmfocalnet.engine.ddp import init_cpu_processes
from mmfocalnet.errors import ConfigError


def test_slurm_without_scontrol(monkeypatch):
    task = dict(SLURM_PROCID='0', SLURM_NTASKS='2', SLURM_NODELIST='node[1-2]', PATH='')
    for name, value in task.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    with pytest.raises(ConfigError, match=r'scontrol.*MASTER_ADDR'):
        init_cpu_processes(Config(dict(launcher='slurm', env_cfg={})))


@pytest.mark.parametrize('timeout', ['soon', 0])
def test_an_invalid_timeout(timeout):
    cfg = Config(dict(launcher='pytorch', env_cfg=dict(dist_cfg=dict(timeout=timeout))))
    with pytest.raises(ConfigError, match='dist_cfg'):
        init_cpu_processes(cfg)
