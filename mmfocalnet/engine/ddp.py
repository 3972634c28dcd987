"""DistributedDataParallel on the CPU; on GPUs, MMEngine's runner sets it up."""

from __future__ import annotations

import atexit
import os
import subprocess
import time
from datetime import timedelta
from typing import Any

import torch
from mmengine.config import Config

from mmfocalnet.arguments import integer
from mmfocalnet.errors import ConfigError


def init_cpu_processes(cfg: Config) -> None:
    """Join the gloo process group of a launch without GPUs.

    MMEngine's initialization calls ``torch.cuda.set_device`` for every backend. Its Runner uses an
    existing process group.

    Args:
        cfg: The config, with ``launcher`` set; its model wrapper is set to one without
            devices. ``env_cfg.dist_cfg.timeout`` is in seconds, as for MMEngine.

    Raises:
        ConfigError: If the launcher is neither ``pytorch`` (torchrun) nor ``slurm``, or the timeout
            is not a positive integer.
    """
    if cfg.launcher not in ('pytorch', 'slurm'):
        raise ConfigError(
            f'--launcher {cfg.launcher} needs GPUs, and none is visible: on CPUs use '
            'tools/dist_train.sh CONFIG NUM_PROCESSES.'
        )
    options: dict[str, Any] = {}  # PyTorch 2.1 does not accept timeout=None
    timeout = cfg.env_cfg.get('dist_cfg', {}).get('timeout')
    if timeout is not None:
        seconds = integer('timeout of env_cfg.dist_cfg', timeout, minimum=1)
        options['timeout'] = timedelta(seconds=seconds)
    cfg.env_cfg.dist_cfg = dict(backend='gloo')
    cfg.sync_bn = None  # PyTorch's synchronised batch norm is for GPUs
    if cfg.launcher == 'slurm':
        options.update(_slurm_task())
    torch.distributed.init_process_group('gloo', **options)
    atexit.register(_let_gloo_finish)
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )


def _slurm_task() -> dict[str, Any]:
    """The arguments of ``init_process_group`` for a task of Slurm, as MMEngine chooses them."""
    address = os.environ.get('MASTER_ADDR')
    if address is None:
        command = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
        try:
            address = subprocess.check_output(command, text=True).split()[0]
        except (OSError, subprocess.CalledProcessError) as error:
            raise ConfigError(
                f'--launcher slurm could not ask scontrol for the first node ({error}): set '
                'MASTER_ADDR to its address.'
            ) from None
    return dict(
        rank=int(os.environ['SLURM_PROCID']),
        world_size=int(os.environ['SLURM_NTASKS']),
        init_method=f'tcp://{address}:{os.environ.get("MASTER_PORT", 29500)}',
    )


def _let_gloo_finish() -> None:
    """Wait until gloo's threads have released the tensors of the last collective.

    A thread that takes the GIL too late aborts the process ("terminate called without an active
    exception"), and with it the launch. Destroying the process group does not join the threads
    after DistributedDataParallel has used it (PyTorch 2.13).
    """
    time.sleep(0.5)
