"""Checkpoint hook for runs that may be killed at any moment."""

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
)
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import Tensor, nn

from mmfocalnet.arguments import integer
from mmfocalnet.engine.hooks.deferred_removal import DeferredRemovalStorage
from mmfocalnet.engine.hooks.early_stopping_state import restore_patience, save_patience
from mmfocalnet.engine.hooks.tolerant_param_scheduler import find_metric
from mmfocalnet.errors import CheckpointError, UserError
from mmfocalnet.files import PARTIAL, is_url, replacing
from mmfocalnet.registry import register
from mmfocalnet.text import join_keys

BACKEND = 'mmfocalnet.atomic'
# MMEngine's file that contains the path of the newest checkpoint.
LAST_CHECKPOINT = 'last_checkpoint'
GRADIENTS = 'accumulated_gradients'
# Keys of this hook in the message hub, which is saved in every checkpoint.
VALIDATED, OUTDATED = 'validated', 'outdated_ckpts'


@register_backend(BACKEND, force=True)
class AtomicBackend(LocalBackend):
    """MMEngine's backend for local files, with atomic writes."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file, and create its folder if needed.

        Raises:
            UserError: If it cannot be written; an existing file stays unchanged.
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
                f'{path} cannot be written ({error.strerror}): free space or fix the folder, '
                'then continue from the previous checkpoint with --resume.'
            ) from error


@register(HOOKS)
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook`` for runs that may be killed at any moment.

    - A checkpoint is written under a temporary name, then renamed. Outdated checkpoints,
      including the previous best one, are removed afterwards.
    - NaN or infinite weights are not saved; the run ends.
    - Checkpoints include the gradients of an unfinished accumulation
      (``optim_wrapper.accumulative_counts``) and the counters of ``EarlyStoppingHook``.
    - A resumed run begins with the validation that its checkpoint lacks, on which ``save_best``,
      ``EarlyStoppingHook`` and ``ReduceOnPlateauLR`` depend.

    Args:
        out_dir: Folder of the checkpoints. Defaults to None: the work dir.
        backend_args: Arguments of MMEngine's storage, for an ``out_dir`` that is not on disk.
            Defaults to None.
        **settings: Arguments of ``CheckpointHook``, such as ``interval`` and ``max_keep_ckpts``.

    Raises:
        ConfigError: If ``interval`` or ``max_keep_ckpts`` is not an integer.
    """

    def __init__(
        self,
        out_dir: str | None = None,
        backend_args: dict | None = None,
        **settings: Any,
    ) -> None:
        for name in ('interval', 'max_keep_ckpts'):
            integer(
                f'{name} of {type(self).__name__}',
                settings.get(name, -1),
                minimum=-1,
                maximum=2**31,
            )
        if not backend_args and not is_url(out_dir):
            backend_args = dict(backend=BACKEND)
        super().__init__(out_dir=out_dir, backend_args=backend_args, **settings)
        self._gradients: list[dict[str, Tensor]] | None = None
        self._metrics: dict[str, float] = {}
        self._saved_at: dict[str, int] = {}

    def before_train(self, runner: Runner) -> None:
        """Remove the leftovers of a killed run, and run its missing validation."""
        # MMEngine would remove these at once, even if the checkpoint is from another folder.
        kept = runner.message_hub.pop_info('keep_ckpt_ids', [])
        super().before_train(runner)
        if runner._resume and runner._load_from:  # it may have been moved
            runner.message_hub.update_info('last_ckpt', runner._load_from)
        self.last_ckpt = runner.message_hub.get_info('last_ckpt')
        self.file_backend = DeferredRemovalStorage(self.file_backend, str(self.out_dir))
        here = self._resumes_in_this_folder(runner)
        self._find_best(here)
        if here:
            for step in kept if isinstance(kept, list) else ():
                if isinstance(step, int) and step >= 0:
                    self._update_kept(runner, step)
            names = runner.message_hub.get_info(OUTDATED)
            self.file_backend.schedule_leftovers(names, self.filename_tmpl)
        self._remove_outdated()
        if is_main_process():
            for folder in (runner.work_dir, Path(self.out_dir, self.filename_tmpl).parent):
                for part in Path(folder).glob(f'{PARTIAL}*'):
                    part.unlink(missing_ok=True)
        if self._lacks_validation(runner):
            runner.val_loop.run()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Store the metrics; the best checkpoint is saved after all hooks have processed them."""
        self._metrics = metrics

    def after_val(self, runner: Runner) -> None:
        """Save the best checkpoint.

        Raises:
            ConfigError: If ``save_best`` specifies a metric that the validation does not measure.
        """
        metrics = dict(self._metrics)
        for name in self.key_indicators if self.save_best and metrics else ():
            if name != 'auto':
                owner = f'save_best of {type(self).__name__}'
                metrics[name] = find_metric(runner, self._metrics, name, owner)
        training = isinstance(getattr(self, 'file_backend', None), DeferredRemovalStorage)
        if training:
            runner.message_hub.update_info(VALIDATED, _completed(runner))
        super().after_val_epoch(runner, metrics)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the gradients of an unfinished accumulation and the early-stopping counters."""
        # FlexibleRunner stores epoch + 1, as if every checkpoint were saved before validation.
        checkpoint['meta'].update(self._saved_at)
        if self._gradients:
            checkpoint[GRADIENTS] = self._gradients
        save_patience(runner, checkpoint)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore the gradients, if the number of processes is the same, and the counters.

        Raises:
            CheckpointError: If a resumed checkpoint has malformed values of them.
        """
        if not runner._resume:
            return
        try:
            restore_patience(runner, checkpoint)
            _restore_gradients(runner, checkpoint.pop(GRADIENTS, []))
        except Exception as error:
            raise CheckpointError(
                f'{runner._load_from} cannot be resumed: its accumulated gradients or '
                f'early-stopping counters are malformed ({type(error).__name__}). Use another '
                'checkpoint, or start from this one with load_from and without --resume.'
            ) from error

    def _resumes_in_this_folder(self, runner: Runner) -> bool:
        """Whether the resumed checkpoint is in this hook's folder."""
        if runner._load_from is None:
            return runner._resume
        here = Path(self.out_dir, self.filename_tmpl).parent.resolve()
        return runner._resume and Path(runner._load_from).parent.resolve() == here

    def _find_best(self, here: bool) -> None:
        """Update the paths of the best checkpoints, whose folder may have been moved.

        Checkpoints of another folder belong to another run.
        """
        if not self.save_best:
            return

        def found(path: Any) -> str | None:
            known = here and isinstance(path, str) and path
            return (
                self.file_backend.join_path(self.out_dir, os.path.basename(path)) if known else None
            )

        if len(self.key_indicators) == 1:
            self.best_ckpt_path = found(self.best_ckpt_path)
        for name in getattr(self, 'best_ckpt_path_dict', ()):
            self.best_ckpt_path_dict[name] = found(self.best_ckpt_path_dict[name])

    def _newest_and_best(self) -> list[str | None]:
        best = getattr(self, 'best_ckpt_path_dict', {}).values()
        return [self.last_ckpt, getattr(self, 'best_ckpt_path', None), *best]

    def _lacks_validation(self, runner: Runner) -> bool:
        loop = runner.train_loop
        done = _completed(runner)
        validated = runner.message_hub.get_info(VALIDATED)
        if (
            not done
            or runner.val_loop is None
            or (isinstance(validated, int) and validated == done)
        ):
            return False
        if not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
            return False
        end = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters
        loop._decide_current_val_interval()
        return done >= loop.val_begin and (done % loop.val_interval == 0 or done == end)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Save a better checkpoint, then remove the previous one; MMEngine removes first."""
        self._saved_at = dict(epoch=runner.epoch, iter=runner.iter)
        super()._save_best_checkpoint(runner, metrics)
        self._saved_at = {}
        if self.save_best:
            self._remove_outdated()  # if no regular checkpoint is saved after the best one

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save, then remove outdated checkpoints; MMEngine removes first."""
        _check_weights(runner)
        name = self.filename_tmpl.format(step)
        self._update_kept(runner, step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        # If the run is killed before the removal, the resumed run removes them.
        outdated = self.file_backend.scheduled_except(keep=self._newest_and_best())
        runner.message_hub.update_info(OUTDATED, outdated)
        self._gradients = _accumulated_gradients(runner)
        self._saved_at = dict(meta)
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
        self._gradients, self._saved_at = None, {}  # other hooks may save at other iterations
        if is_main_process():
            AtomicBackend().put(
                self.last_ckpt.encode(), os.path.join(runner.work_dir, LAST_CHECKPOINT)
            )
        self._remove_outdated()

    def _update_kept(self, runner: Runner, step: int) -> None:
        """Add a checkpoint to the kept ones, and schedule the removal of the oldest."""
        if self.max_keep_ckpts <= 0:
            return
        kept = [*(other for other in self.keep_ckpt_ids if other != step), step]
        self.keep_ckpt_ids.clear()
        self.keep_ckpt_ids.extend(kept)  # a deque of limited length
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        for old in kept[: -self.max_keep_ckpts]:
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old))
            self.file_backend.remove(path)

    def _remove_outdated(self) -> None:
        if is_main_process():
            self.file_backend.remove_scheduled(keep=self._newest_and_best())
        self.file_backend.names = []


def _completed(runner: Runner) -> int:
    """Completed epochs or iterations, in the unit of the training loop."""
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    return runner.epoch if by_epoch else runner.iter


def recovery_advice(runner: Runner) -> str:
    """Advice for a run with NaN or infinite values, with the last checkpoint."""
    last = runner.message_hub.get_info('last_ckpt')
    kept = (
        f'the last checkpoint is {last}: start from it with load_from, because --resume would '
        'repeat the same losses'
        if last
        else 'nothing was saved yet'
    )
    return f'lower the learning rate or clip the gradients (optim_wrapper.clip_grad); {kept}.'


def _bare(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _check_weights(runner: Runner) -> None:
    """Raise if weights are NaN or infinite in any process; under FSDP each has a shard."""
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
            f'({join_keys(bad)}): {recovery_advice(runner)}'
        )


def _restore_gradients(runner: Runner, gradients: list[dict[str, Tensor]]) -> None:
    if len(gradients) != get_world_size():
        return
    parameters = dict(_bare(runner.model).named_parameters())
    for name, gradient in gradients[get_rank()].items():
        parameters[name].grad = gradient.to(parameters[name].device)


def _accumulated_gradients(runner: Runner) -> list[dict[str, Tensor]] | None:
    """The gradients of an unfinished accumulation, per process; None after a step."""
    # A step sets all gradients to None.
    gradients = {
        name: weight.grad.cpu().clone()  # a view would save the complete shard
        for name, weight in _bare(runner.model).named_parameters()
        if weight.grad is not None
    }
    return all_gather_object(gradients) if gradients else None
