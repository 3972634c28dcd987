"""Checkpoints that a run can always go on from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import (
    all_gather_object,
    get_rank,
    get_world_size,
    is_main_process,
    master_only,
)
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn

from mmfocalnet.checkpoints.report import named
from mmfocalnet.errors import UserError
from mmfocalnet.files import PARTIAL, replacing
from mmfocalnet.models.arguments import whole
from mmfocalnet.registration import register

BACKEND = 'mmfocalnet.atomic'
# MMEngine's name for the file that says which checkpoint is the newest.
MARK = 'last_checkpoint'
GRADIENTS = 'accumulated_gradients'


@register_backend(BACKEND, force=True)
class AtomicBackend(LocalBackend):
    """MMEngine's files on disk, which here are written whole or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file; its folder is made where it is missing.

        Raises:
            UserError: If it cannot be written; nothing of it is left then, and a file of that
                name is as it was.
        """
        path = Path(filepath)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part, part.open('wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())  # or a power cut could leave the new name without content
        except OSError as error:
            raise UserError(
                f'{path} cannot be written ({error.strerror}): make room or mend its folder, then '
                'go on from the checkpoint before it with --resume.'
            ) from error


@register(HOOKS)
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, which loses nothing when a run ends at any moment.

    - A checkpoint is written under a temporary name, then renamed, and older ones are removed
      after that, not before.
    - Weights that are NaN or infinite are not saved; the run ends.
    - Gradients of an accumulation under way are part of it
      (``optim_wrapper.accumulative_counts``).
    - A resumed run first makes up for the validation that its checkpoint still lacks, where the
      best checkpoint is asked for (``save_best``) or the training is over.

    Args:
        out_dir: Where checkpoints go. Defaults to None: the work dir.
        backend_args: Of MMEngine's storage, for ``out_dir`` elsewhere than on disk. Defaults to
            None.
        **settings: Those of ``CheckpointHook``, such as ``interval`` and ``max_keep_ckpts``.

    Raises:
        ConfigError: If one of these two is no whole number.
    """

    def __init__(
        self,
        out_dir: str | None = None,
        backend_args: dict | None = None,
        **settings: Any,
    ) -> None:
        for name in ('interval', 'max_keep_ckpts'):
            whole(f'{name} of {type(self).__name__}', settings.get(name, -1), least=-1, most=2**31)
        if not backend_args and '://' not in str(out_dir):
            backend_args = dict(backend=BACKEND)
        super().__init__(out_dir=out_dir, backend_args=backend_args, **settings)
        self._gradients: list[dict[str, Tensor]] | None = None

    def before_train(self, runner: Runner) -> None:
        """Clear away what a killed run was writing, and validate what it could not."""
        super().before_train(runner)
        self.last_ckpt = runner.message_hub.get_info('last_ckpt')
        if is_main_process() and Path(self.out_dir).is_dir():
            for part in Path(self.out_dir).glob(f'{PARTIAL}*'):
                part.unlink(missing_ok=True)
        if self._lacks_validation(runner):
            runner.val_loop.run()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the gradients of an accumulation that is under way."""
        if self._gradients:
            checkpoint[GRADIENTS] = self._gradients

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take up an accumulation that was under way, with as many processes as before."""
        gradients = checkpoint.pop(GRADIENTS, [])
        if not runner._resume or len(gradients) != get_world_size():
            return
        parameters = dict(_bare(runner.model).named_parameters())
        for name, gradient in gradients[get_rank()].items():
            parameters[name].grad = gradient.to(parameters[name].device)

    def _lacks_validation(self, runner: Runner) -> bool:
        loop = runner.train_loop
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        done, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
        if not done or runner.val_loop is None or not (self.save_best or done == end):
            return False
        loop._decide_current_val_interval()
        return done >= loop.val_begin and (done % loop.val_interval == 0 or done == end)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save, say so, then remove what is too old; MMEngine removes first."""
        _check_weights(runner)
        name = self.filename_tmpl.format(step)
        outdated = self._count(runner, step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._gradients = _accumulated_gradients(runner)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        self._gradients = None
        self._finish(runner, outdated)

    def _count(self, runner: Runner, step: int) -> list[int]:
        """Count a checkpoint among those that are kept; give those that no longer are."""
        if self.max_keep_ckpts <= 0:
            return []
        kept = [*(other for other in self.keep_ckpt_ids if other != step), step]
        self.keep_ckpt_ids.clear()
        self.keep_ckpt_ids.extend(kept)  # a deque, which forgets the oldest
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        return kept[: -self.max_keep_ckpts]

    @master_only
    def _finish(self, runner: Runner, outdated: list[int]) -> None:
        AtomicBackend().put(self.last_ckpt.encode(), os.path.join(runner.work_dir, MARK))
        for step in outdated:
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # a file per process, as DeepSpeed writes
                self.file_backend.rmtree(path)


def way_back(runner: Runner) -> str:
    """What to do where a run has ended in numbers that are none: the end of a sentence."""
    last = runner.message_hub.get_info('last_ckpt')
    kept = (
        f'{last} is from before: start from it with load_from and without --resume, which would '
        'come back to the same losses'
        if last
        else 'nothing was saved yet'
    )
    return f'lower the learning rate or clip the gradients (optim_wrapper.clip_grad); {kept}.'


def _bare(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _check_weights(runner: Runner) -> None:
    """Refuse to save weights that are no numbers in any process; under FSDP each has its own."""
    bad = [
        name
        for name, weight in _bare(runner.model).named_parameters()
        if not torch.isfinite(weight).all()
    ]
    if get_world_size() > 1:
        bad = sorted({name for names in all_gather_object(bad) for name in names})
    if bad:
        raise UserError(
            f'{len(bad)} weights are NaN or infinite after iteration {runner.iter + 1} '
            f'({named(bad)}): {way_back(runner)}'
        )


def _accumulated_gradients(runner: Runner) -> list[dict[str, Tensor]] | None:
    """Of each process, the gradients of an accumulation under way; None between two steps."""
    # Without accumulation the last step has emptied them.
    gradients = {
        name: weight.grad.cpu().clone()  # not a view of a shard, all of which would be saved
        for name, weight in _bare(runner.model).named_parameters()
        if weight.grad is not None
    }
    return all_gather_object(gradients) if gradients else None
