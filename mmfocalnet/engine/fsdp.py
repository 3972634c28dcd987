"""FSDP: training with weights, gradients and optimizer state sharded over processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.dist import is_main_process
from mmengine.optim import BaseOptimWrapper, OptimWrapper
from mmengine.registry import FUNCTIONS, STRATEGIES
from torch import Tensor, nn
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
)

from mmfocalnet.errors import ConfigError
from mmfocalnet.files import replacing
from mmfocalnet.models import FocalNetBlock
from mmfocalnet.registry import register

OPTIMIZER_KEYS = ('state', 'param_groups')


@register(FUNCTIONS)
def focalnet_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Shard each FocalNet block separately and everything else at the root (FSDP).

    An ``auto_wrap_policy`` of MMEngine's ``MMFullyShardedDataParallel``. A policy by size would
    also wrap heads. mmdet and mmseg call methods of heads other than ``forward``, and FSDP gathers
    weights in ``forward`` only.

    Args:
        module: A module of the model.
        recurse: Whether FSDP asks to visit the children, or to wrap the module.
        nonwrapped_numel: Number of its parameters outside wrapped children.

    Returns:
        Whether to visit or wrap.
    """
    return recurse or isinstance(module, FocalNetBlock)


@register(STRATEGIES)
class FocalNetFSDPStrategy(FSDPStrategy):
    """MMEngine's ``FSDPStrategy``, for models with a FocalNet backbone.

    It shards by `focalnet_blocks` and saves checkpoints as without FSDP. Unlike MMEngine 0.10's, it
    resumes with PyTorch 2.1 and later, clips by the norm of the complete gradient instead of the
    shard's, and runs without GPUs.

    Args:
        model_wrapper: Arguments of ``MMFullyShardedDataParallel``. Defaults to None: only
            ``auto_wrap_policy`` is set.
        state_dict_cfg: As of ``FSDPStrategy``. Defaults to ``'full'``.
        **kwargs: Further arguments of ``FSDPStrategy``.
    """

    def __init__(
        self,
        *,
        model_wrapper: dict | None = None,
        state_dict_cfg: str | dict = 'full',
        **kwargs: Any,
    ) -> None:
        wrapper = {'auto_wrap_policy': 'focalnet_blocks', **(model_wrapper or {})}
        if not torch.cuda.is_available():
            wrapper.setdefault('device_id', torch.device('cpu'))
        super().__init__(model_wrapper=wrapper, state_dict_cfg=state_dict_cfg, **kwargs)
        if state_dict_cfg == 'full' and not torch.cuda.is_available():
            # With CPU offload on the CPU, PyTorch shares one buffer among all of Adam's moments and
            # crashes while gathering the weights.
            on_cpu = dict(rank0_only=True, offload_to_cpu=False)
            self.state_dict_config = FullStateDictConfig(**on_cpu)
            self.optim_state_dict_config = FullOptimStateDictConfig(**on_cpu)

    def build_optim_wrapper(
        self,
        optim_wrapper: torch.optim.Optimizer | BaseOptimWrapper | dict,
        model: nn.Module | None = None,
    ) -> BaseOptimWrapper:
        """Build the optimizer wrapper, with a ``clip_grad`` that uses the complete gradient.

        Args:
            optim_wrapper: As MMEngine takes it.
            model: The sharded model.

        Returns:
            The wrapper.
        """
        wrapper = super().build_optim_wrapper(optim_wrapper, model)
        if isinstance(wrapper, OptimWrapper) and getattr(wrapper, 'grad_name', '') == 'grad_norm':

            def clip(parameters: list[nn.Parameter], **settings: Any) -> Tensor:
                return model.clip_grad_norm_(**settings)

            wrapper.clip_func = clip
        return wrapper

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        """Shard the model.

        Raises:
            ConfigError: If it has scalar weights, which FSDP cannot shard.
        """
        scalars = [name for name, weight in model.named_parameters() if not weight.ndim]
        if scalars:
            raise ConfigError(
                f'FSDP cannot shard scalar weights, and {type(model).__name__} has {scalars[0]}: '
                'train it without runner_type and strategy.'
            )
        return super()._wrap_model(model)

    def save_checkpoint(self, filename: str, **settings: Any) -> None:
        """Save a checkpoint; single files are written atomically.

        Args:
            filename: The file.
            **settings: As of ``FSDPStrategy``.
        """
        if not (self._is_full_state_dict() and is_main_process()):
            super().save_checkpoint(filename, **settings)
            return
        Path(filename).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(filename)) as part:
            super().save_checkpoint(str(part), **settings)

    def optim_state_dict(self) -> dict:
        """Gather the optimizer's state, with the additional state of the wrapper.

        That is the loss scale of mixed precision and the rate that is logged as ``base_lr``;
        FSDP drops both.

        Returns:
            The state. With full state dicts, only the first process has that of the optimizer.
        """
        return {**super().optim_state_dict(), **_beside_optimizer(self.optim_wrapper.state_dict())}

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load the optimizer's state.

        MMEngine passes the arguments in the order of PyTorch 2.0, which PyTorch 2.1 changed.

        Args:
            state_dict: As `optim_state_dict` returned it.
        """
        sharded = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model,
            optim=self.optim_wrapper.optimizer,
            optim_state_dict={key: state_dict[key] for key in OPTIMIZER_KEYS},
        )
        self.optim_wrapper.load_state_dict({**sharded, **_beside_optimizer(state_dict)})


def _beside_optimizer(state_dict: dict) -> dict:
    return {key: value for key, value in state_dict.items() if key not in OPTIMIZER_KEYS}
