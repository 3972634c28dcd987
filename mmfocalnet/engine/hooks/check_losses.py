"""Losses that are no numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from mmfocalnet.engine.hooks.checkpoint import way_back
from mmfocalnet.errors import OneProcessError, UserError
from mmfocalnet.registry import register
from mmfocalnet.text import join_keys

LOOK = 'look at these images and their labels'
GRADIENTS = 'The norm of the gradients'
# A dynamic loss scale starts at 2**16 and is halved at each iteration whose gradients overflow;
# below this they would have to be greater than 10**9.
SCALE, LEAST_SCALE = 'The loss scale, halved where gradients are NaN or infinite,', 2.0**-14
# What `scipy.optimize.linear_sum_assignment` says of NaN and of infinity.
REFUSED = ('matrix contains invalid numeric entries', 'cost matrix is infeasible')


@register(HOOKS)
class CheckLossesHook(Hook):
    """Stop a run at the first loss that is NaN or infinite, before it is saved or averaged.

    Each iteration is looked at, which costs a GPU no further wait: MMEngine reads each loss
    for its log at each iteration. In a launch the processes tell each other, so that all end at
    the same iteration and none waits for another. Gradients that a loss scale makes infinite
    are no error, for the step is left out then, until the scale has become 2**-14.
    """

    priority = 'ABOVE_NORMAL'  # after what logs the losses, before EMA and checkpoints
    images = ''  # of the batch under way

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Note the images of a batch."""
        self.images = _images(data_batch)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        outputs: Mapping[str, Tensor],
    ) -> None:
        """Look at the losses of an iteration.

        Raises:
            UserError: If one is no finite number in any process; it names the loss, the
                iteration, the images and the last good checkpoint.
        """
        bad = _bad_value(runner, outputs)
        found = '' if bad is None else f'{bad[0]} is {bad[1]} {self._place(runner)}'
        if get_world_size() > 1:
            found = _first_of_all(found, outputs['loss'].device)
        if found:
            raise UserError(f'{found}: {LOOK}, {way_back(runner)}')

    @contextmanager
    def explaining(self, runner: Runner) -> Iterator[None]:
        """Explain why a matcher stops a training, before there is a loss.

        Mask2Former and Sparse R-CNN assign queries to objects with SciPy, which refuses costs
        that are no numbers.

        Raises:
            OneProcessError: Instead of SciPy's error; as of a loss.
        """
        try:
            yield
        except ValueError as error:
            if str(error) not in REFUSED:
                raise
            raise OneProcessError(
                'The costs of matching predictions to objects are NaN or infinite '
                f'{self._place(runner)}: {LOOK}, {way_back(runner)}'
            ) from error

    def _place(self, runner: Runner) -> str:
        process = f' of process {get_rank()}' if get_world_size() > 1 else ''
        return f'at iteration {runner.iter + 1}{process}, with {self.images}'


def _bad_value(runner: Runner, outputs: Mapping[str, Tensor]) -> tuple[str, float] | None:
    """The first term that is not finite, else the sum of all, else what tells of the gradients."""
    losses = {name: value for name, value in outputs.items() if 'loss' in name}
    names = sorted(losses, key='loss'.__eq__)
    # One transfer for all of them.
    values = torch.stack([losses[name].detach().float() for name in names]).tolist()
    read = dict(zip(names, values, strict=True))
    scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
    if scaler is None and 'train/grad_norm' in runner.message_hub.log_scalars:
        read[GRADIENTS] = runner.message_hub.get_scalar('train/grad_norm').current()
    bad = next((item for item in read.items() if not math.isfinite(item[1])), None)
    if bad is None and scaler is not None and scaler.get_scale() < LEAST_SCALE:
        return SCALE, scaler.get_scale()
    return bad


def _images(data_batch: Mapping) -> str:
    return join_keys(
        [
            str(sample.get('img_path', sample.get('img_id', 'an image without a name')))
            for sample in data_batch.get('data_samples', [])
        ]
    )


def _first_of_all(found: str, device: torch.device) -> str:
    """What the first process with a bad loss found, else with bad gradients; the same in all."""
    any_found = torch.tensor(float(bool(found)), device=device)
    all_reduce(any_found, 'max')
    if not any_found:
        return ''
    texts = [text for text in all_gather_object(found) if text]
    # A loss of one process spoils the gradients of all.
    return min(texts, key=lambda text: text.startswith((GRADIENTS, SCALE)))
