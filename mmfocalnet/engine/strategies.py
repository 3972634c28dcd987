"""Training with weights, gradients and optimizer state spread over processes: FSDP."""

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
    """Let FSDP shard each FocalNet block by itself and everything else at the root.

    An ``auto_wrap_policy`` of MMEngine's ``MMFullyShardedDataParallel``. Policies that go by
    size would wrap heads too, of which mmdet and mmseg call other methods than ``forward``:
    FSDP would not gather their weights.

    Args:
        module: A module of the model.
        recurse: Whether the question is to look inside, or to wrap.
        nonwrapped_numel: Number of its parameters that no wrapped child holds.

    Returns:
        Whether to do so.
    """
    return recurse or isinstance(module, FocalNetBlock)


@register(STRATEGIES)
class FocalNetFSDPStrategy(FSDPStrategy):
    """MMEngine's ``FSDPStrategy``, for models on a FocalNet.

    It shards by `focalnet_blocks` and saves one checkpoint as training without FSDP does. What
    MMEngine's own does not do (0.10): resume with PyTorch 2.1 and later, clip by the norm of the
    whole gradient instead of each process' shard, and run without GPUs.

    Args:
        model_wrapper: Arguments of ``MMFullyShardedDataParallel``. Defaults to None: the policy
            alone.
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
            # What is on the CPU already is not to be moved there: PyTorch then hands out one buffer
            # for all of Adam's moments, and crashes at the weights.
            on_cpu = dict(rank0_only=True, offload_to_cpu=False)
            self.state_dict_config = FullStateDictConfig(**on_cpu)
            self.optim_state_dict_config = FullOptimStateDictConfig(**on_cpu)

    def build_optim_wrapper(
        self,
        optim_wrapper: torch.optim.Optimizer | BaseOptimWrapper | dict,
        model: nn.Module | None = None,
    ) -> BaseOptimWrapper:
        """Build the optimizer wrapper, with a ``clip_grad`` that sees the whole gradient.

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
        """Save a checkpoint; one that is a single file appears whole or not at all.

        Args:
            filename: Where to.
            **settings: As of ``FSDPStrategy``.
        """
        if not (self._is_full_state_dict() and is_main_process()):
            super().save_checkpoint(filename, **settings)
            return
        Path(filename).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(filename)) as part:
            super().save_checkpoint(str(part), **settings)

    def optim_state_dict(self) -> dict:
        """Gather the optimizer's state, with what the wrapper keeps beside it.

        That is the loss scale of mixed precision and the rate that is logged as ``base_lr``;
        FSDP drops both.

        Returns:
            The state; that of the optimizer is in the first process alone where it is saved full.
        """
        return {**super().optim_state_dict(), **_beside_optimizer(self.optim_wrapper.state_dict())}

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load the optimizer's state.

        MMEngine gives the arguments in the order of PyTorch 2.0, which PyTorch 2.1 changed.

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
