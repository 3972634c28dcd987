"""AdamW in one pass over each parameter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from mmengine.registry import OPTIMIZERS
from torch.optim import AdamW

from mmfocalnet.registry import register


@register(OPTIMIZERS)
def FusedAdamW(params: Iterable[torch.Tensor] | Iterable[dict], **settings: Any) -> AdamW:  # noqa: N802
    """Build PyTorch's AdamW, fused where PyTorch can: on GPUs, and from 2.4 on also on the CPU.

    With ``paramwise_cfg``, MMEngine makes a group of each parameter. An unfused step runs a dozen
    operations for each of them.

    Args:
        params: Parameters or groups of them.
        **settings: Arguments of ``torch.optim.AdamW``.

    Returns:
        The optimizer. Its state is that of an unfused AdamW.
    """
    given: list[Any] = list(params)  # a generator can be read only once
    try:
        optimizer = AdamW(_copied(given), **{'fused': True, **settings})
    except RuntimeError:  # not with these parameters or settings
        optimizer = AdamW(given, **settings)
    optimizer.register_load_state_dict_pre_hook(_keep_implementation)
    return optimizer


def _keep_implementation(optimizer: AdamW, state: dict[str, Any]) -> dict[str, Any] | None:
    """Ignore which implementation wrote a checkpoint: another machine may have run it.

    A gradient scaler fails if the groups of a fused optimizer say that it is not fused.
    """
    groups = optimizer.param_groups
    if len(groups) != len(state['param_groups']):
        return None  # which PyTorch reports
    kept = [{key: group.get(key) for key in ('fused', 'foreach')} for group in groups]
    merged = [{**old, **new} for old, new in zip(state['param_groups'], kept, strict=True)]
    return {**state, 'param_groups': merged}


def _copied(params: list[Any]) -> list[Any]:
    """The parameters or groups; AdamW adds its settings to the groups that it is given."""
    return [dict(group) if isinstance(group, dict) else group for group in params]
