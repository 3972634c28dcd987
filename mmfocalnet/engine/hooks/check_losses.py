"""Stop a training run at a NaN or infinite loss."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from mmfocalnet.engine.hooks.atomic_checkpoint import recovery_advice
from mmfocalnet.errors import UserError
from mmfocalnet.registry import register
from mmfocalnet.text import join_keys

LOOK = 'check these images and their labels'
GRADIENT_NORM = 'The norm of the gradients'
# A dynamic loss scale starts at 2**16 and is halved when gradients overflow. Below this minimum,
# only gradients greater than 10**9 overflow in float16.
SCALE, MIN_SCALE = 'The loss scale, halved where gradients are NaN or infinite,', 2.0**-14


@register(HOOKS)
class CheckLossesHook(Hook):
    """Stop a run at the first NaN or infinite loss, before weights are saved or averaged (EMA).

    Every iteration is checked. This adds no GPU synchronization, because MMEngine reads every
    loss for its log anyway. In a launch the processes exchange the result, so that all of them
    end at the same iteration. With a dynamic loss scale, steps with infinite gradients are skipped;
    they are an error only if the scale is below 2**-14.
    """

    priority = 'ABOVE_NORMAL'  # after the loggers, before EMA and checkpoints
    images = ''  # of the current batch

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Store the image names of the batch."""
        self.images = _images(data_batch)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        outputs: Mapping[str, Tensor],
    ) -> None:
        """Check the losses of an iteration.

        Raises:
            UserError: If one is NaN or infinite in any process. The message contains the loss, the
                iteration, the images and the last checkpoint.
        """
        bad = _bad_value(runner, outputs)
        found = '' if bad is None else f'{bad[0]} is {bad[1]} {self._position(runner)}'
        if get_world_size() > 1:
            found = _first_of_all(found, outputs['loss'].device)
        if found:
            raise UserError(f'{found}: {LOOK}, {recovery_advice(runner)}')

    def _position(self, runner: Runner) -> str:
        process = f' of process {get_rank()}' if get_world_size() > 1 else ''
        return f'at iteration {runner.iter + 1}{process}, with {self.images}'


def _bad_value(runner: Runner, outputs: Mapping[str, Tensor]) -> tuple[str, float] | None:
    """Name and value of the first bad loss, else of the sum, gradient norm or loss scale."""
    losses = {name: value for name, value in outputs.items() if 'loss' in name}
    names = sorted(losses, key='loss'.__eq__)
    # One transfer for all of them.
    values = torch.stack([losses[name].detach().float() for name in names]).tolist()
    read = dict(zip(names, values, strict=True))
    scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
    if scaler is None and 'train/grad_norm' in runner.message_hub.log_scalars:
        read[GRADIENT_NORM] = runner.message_hub.get_scalar('train/grad_norm').current()
    bad = next((item for item in read.items() if not math.isfinite(item[1])), None)
    if bad is None and scaler is not None and scaler.get_scale() < MIN_SCALE:
        return SCALE, scaler.get_scale()
    return bad


def _images(data_batch: Mapping) -> str:
    return join_keys(
        [
            str(sample.get('img_path', sample.get('img_id', 'an unnamed image')))
            for sample in data_batch.get('data_samples', [])
        ]
    )


def _first_of_all(found: str, device: torch.device) -> str:
    """The finding of the first process with a bad loss, else bad gradients; equal in all."""
    any_found = torch.tensor(float(bool(found)), device=device)
    all_reduce(any_found, 'max')
    if not any_found:
        return ''
    texts = [text for text in all_gather_object(found) if text]
    # A bad loss of one process makes the gradients of all processes bad.
    return min(texts, key=lambda text: text.startswith((GRADIENT_NORM, SCALE)))
