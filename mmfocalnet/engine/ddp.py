"""DistributedDataParallel on the CPU; on GPUs, MMEngine's runner sets it up."""

from __future__ import annotations

import atexit
import time

import torch
from mmengine.config import Config

from mmfocalnet.errors import ConfigError


def init_cpu_processes(cfg: Config) -> None:
    """Join the gloo process group of a launch without GPUs.

    MMEngine's initialization calls ``torch.cuda.set_device`` for every backend. Its Runner uses an
    existing process group.

    Args:
        cfg: The config, with ``launcher`` set; its model wrapper is set to one without
            devices.

    Raises:
        ConfigError: If the launcher is not ``pytorch`` (torchrun).
    """
    if cfg.launcher != 'pytorch':
        raise ConfigError(
            f'--launcher {cfg.launcher} needs GPUs, and none is visible: on CPUs use '
            'tools/dist_train.sh CONFIG NUM_PROCESSES.'
        )
    cfg.env_cfg.dist_cfg = dict(backend='gloo')
    cfg.sync_bn = None  # PyTorch's synchronised batch norm is for GPUs
    torch.distributed.init_process_group('gloo')
    atexit.register(_let_gloo_finish)
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )


def _let_gloo_finish() -> None:
    """Wait until gloo's threads have released the tensors of the last collective.

    A thread that takes the GIL too late aborts the process ("terminate called without an active
    exception"), and with it the launch. Destroying the process group does not join the threads
    after DistributedDataParallel has used it (PyTorch 2.13).
    """
    time.sleep(0.5)
