"""Which setting of a config it is that a class of the stack stumbles over."""

from __future__ import annotations

import difflib
import errno
import inspect
import linecache
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import dropwhile
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import ParamSchedulerHook
from mmengine.logging import MMLogger
from mmengine.registry import Registry

from mmfocalnet.cli.origins import (
    frames_of,
    is_of_worker,
    is_users,
    message,
    module_of,
    origin_of,
    places_of,
)
from mmfocalnet.errors import ConfigError, OneProcessError, UserError

# The disk is full, the user's share of it, or the size that files may have.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a setting of a wrong type or value ends in, deep inside the classes of the stack.
STUMBLES = (
    *(TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError),
    *(NotImplementedError, RecursionError, SyntaxError, StopIteration, ImportError),
)
RUNNER, LOOPS = 'mmengine.runner.runner', 'mmengine.runner.loops'
# Functions of MMEngine's, by the module that they are in, and the settings that they are about.
ABOUT = {
    'mmengine.config.config': {'pretty_text': 'A value'},
    'mmengine.dataset.base_dataset': {'prepare_data': 'A pipeline of a dataset'},
    'mmengine.evaluator.evaluator': {
        'process': 'val_evaluator or test_evaluator',
        'evaluate': 'val_evaluator or test_evaluator',
    },
    'mmengine.optim.optimizer.optimizer_wrapper': {
        '_clip_grad': 'optim_wrapper',
        'step': 'optim_wrapper',
    },
    'mmengine.optim.optimizer.amp_optimizer_wrapper': {'step': 'optim_wrapper'},
    'mmengine.optim.optimizer.optimizer_wrapper_dict': {'optim_context': 'optim_wrapper'},
    LOOPS: {
        'run': 'train_cfg or val_cfg',
        '_decide_current_val_interval': 'train_cfg or val_cfg',
    },
    'mmengine.runner.log_processor': {
        'get_log_after_iter': 'log_processor',
        'get_log_after_epoch': 'log_processor',
    },
    RUNNER: {
        'setup_env': 'env_cfg',
        'set_randomness': 'randomness',
        '_check_scheduler_cfg': 'param_scheduler',
        'build_logger': 'log_level',
        'build_visualizer': 'visualizer',
        'build_log_processor': 'log_processor',
        'register_default_hooks': 'default_hooks',
        'register_custom_hooks': 'custom_hooks',
        'build_train_loop': 'train_dataloader or train_cfg',
        'build_val_loop': 'val_dataloader, val_evaluator or val_cfg',
        'build_test_loop': 'test_dataloader, test_evaluator or test_cfg',
        'build_optim_wrapper': 'optim_wrapper',
        'build_param_scheduler': 'param_scheduler',
        'scale_lr': 'auto_scale_lr',
        '_maybe_compile': 'compile',
        'load_or_resume': 'The checkpoint in load_from, or that which --resume found for it,',
    },
    'mmengine.runner.activation_checkpointing': {
        'turn_on_activation_checkpointing': 'activation_checkpointing'
    },
    'mmengine.model.efficient_conv_bn_eval': {
        'turn_on_efficient_conv_bn_eval': 'efficient_conv_bn_eval'
    },
}


@contextmanager
def naming(
    setting: str, cfg: Config, stumbles: tuple[type[Exception], ...] = STUMBLES
) -> Iterator[None]:
    """Say of which setting of a config it is that a class of the stack stumbles over.

    These classes raise a bare TypeError or AssertionError for a list in place of a dict. What a
    user's own class raises keeps its traceback.

    Args:
        setting: Its name.
        cfg: The config.
        stumbles: What such errors are. Defaults to `STUMBLES`.

    Raises:
        ConfigError: With what was raised, and where.
    """
    try:
        yield
    except UserError:
        raise
    except stumbles as error:
        if _is_of_user(error):
            raise
        raise ConfigError(_sentence(f'{setting} of {cfg.filename}', error)) from error


@contextmanager
def naming_any(cfg: Config, otherwise: str | None = None) -> Iterator[None]:
    """Say it of whatever setting a run is set up with or comes upon under way.

    Errors that no setting is known to cause, and those that come from a user's own code, from a
    full disk or from a GPU, keep their traceback. That of the others goes to the run's log file.

    Args:
        cfg: The config.
        otherwise: What to name where no setting is known to be the cause. Defaults to None:
            nothing.

    Raises:
        ConfigError: With what was raised, and where.
        OneProcessError: The same, once the run is under way: other processes may have met nothing.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        origin = origin_of(error)
        setting = _setting_in(origin) or otherwise
        if not setting or _is_of_user(origin) or _is_of_the_machine(origin):
            raise origin from None
        _keep_traceback(origin)
        kind = OneProcessError if _is_under_way(error) else ConfigError
        raise kind(_sentence(f'{setting} of {cfg.filename}', origin)) from origin


def raised_by_builder(error: Exception) -> bool:
    """Whether MMEngine's builder itself raised, not the class that it was building."""
    if not isinstance(error, (TypeError, KeyError)):
        return False
    return frames_of(error)[-1].f_code.co_name == 'build_from_cfg'


def hint(error: Exception) -> str:
    """What to do about a name that does not exist: take the nearest one, if there is any.

    Args:
        error: One that was `raised_by_builder`, or that a class has raised which it was building.
    """
    known, name = [], ''
    built = _built_in(error)
    seen = frames_of(error)[-1].f_locals
    if wrong := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
        name = wrong[1]
        known = _keywords(built) if built else []
    elif isinstance(seen.get('registry'), Registry) and isinstance(seen.get('obj_type'), str):
        registry, name = seen['registry'], seen['obj_type']
        while registry is not None:
            known += registry.module_dict
            registry = registry.parent
    near = difflib.get_close_matches(name, [one for one in known if one != name], n=1)
    if near:
        return f'did you mean {near[0]!r}'
    if raised_by_builder(error):
        return 'correct that name'
    return 'compare it with that of a config in configs/'


def _sentence(setting: str, error: Exception) -> str:
    file, line = places_of(error)[-1]
    place = '/'.join(Path(file).parts[-3:])
    # Most assertions say nothing but what they assert.
    reason = message(error) or linecache.getline(file, line)
    raised = f'{type(error).__name__} in {place}, line {line}: {" ".join(reason.split())[:300]}'
    if isinstance(error, OSError):
        return (
            f'{setting} met a file or folder that it cannot use ({raised}): mend that, then run it '
            'again; a training goes on with --resume.'
        )
    built = _built_in(error)
    to_build = f' what it builds, {getattr(built, "__name__", built)},' if built else ''
    return f'{setting} does not fit{to_build} ({raised}): {hint(error)}.'


def _keep_traceback(error: Exception) -> None:
    """Write the traceback to the log file alone, for those who look for more than a sentence."""
    logger = MMLogger.get_current_instance()
    info = (type(error), error, error.__traceback__)
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, 'Traceback', (), info)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(record)


def _keywords(built: Any) -> list[str]:
    """What a class, those that it inherits from included, or a function takes."""
    functions = [built]
    if isinstance(built, type):
        functions = [vars(one).get('__init__') for one in built.__mro__]
    known = [inspect.signature(one).parameters for one in functions if inspect.isfunction(one)]
    return [name for names in known for name in names]


def _built_in(error: Exception) -> Any:
    """The class or function that MMEngine's builder was calling, None if it was not."""
    for frame in reversed(frames_of(error)):
        if frame.f_code.co_name == 'build_from_cfg' and 'obj_cls' in frame.f_locals:
            return frame.f_locals['obj_cls']
    return None


def _setting_in(error: Exception) -> str | None:
    """What the innermost function is about of which `ABOUT` or a hook's call tells that."""
    if is_of_worker(error):
        return 'A pipeline of a dataset'
    frames = frames_of(error)
    for frame in reversed(frames):
        name, module = frame.f_code.co_name, module_of(frame)
        if name == 'call_hook' and 'hook' in frame.f_locals:
            return _hook(frame.f_locals['hook'])
        if module.startswith('torch.utils.data.'):
            return 'A data loader'
        if module == LOOPS and name != '__init__' and frame is not frames[-1]:
            # A loop calls the model, whose settings show only when it runs.
            return 'model, or what a pipeline gives to it,' if name == 'run_iter' else None
        if module.startswith('mmengine.visualization.'):
            return 'visualizer'
        if setting := _about(module).get(name):
            return setting
    return None


def _about(module: str) -> dict[str, str]:
    # The same functions build for MMEngine's runner for strategies.
    if module.startswith(('mmengine.runner._flexible_runner', 'mmengine._strategy.')):
        module = RUNNER
    return ABOUT.get(module, {})


def _hook(hook: object) -> str:
    if isinstance(hook, ParamSchedulerHook):
        return 'param_scheduler'
    return f'{type(hook).__name__} in default_hooks or custom_hooks'


def _is_under_way(error: Exception) -> bool:
    """Whether a loop has begun; until then every process stumbles alike."""
    frames = frames_of(error)
    return any(module_of(one) == LOOPS and one.f_code.co_name == 'run' for one in frames)


def _is_of_the_machine(error: Exception) -> bool:
    """Whether it is a full disk, or comes from PyTorch, most often from a GPU."""
    if isinstance(error, OSError):
        return error.errno in FULL_DISK
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or 'CUDA' in str(error):
        return True
    if isinstance(error, STUMBLES) or not isinstance(error, RuntimeError):
        return False
    raised_in = module_of(frames_of(error)[-1])
    return not raised_in.startswith(('mmengine.', 'torch.optim.'))


def _is_of_user(error: Exception) -> bool:
    """Whether it passed through code of the user's, or through FocalNet, which checks its own."""
    files = [file for file, _ in places_of(error)]
    # From where a tool, or a script of the user's, enters the stack; above it is `naming_any`.
    inside = dropwhile(lambda file: file == __file__ or is_users(file), files)
    models = [str(Path(__file__).parents[1] / part) for part in ('models', 'ops')]
    running = any(frame.f_code.co_name == 'run_iter' for frame in frames_of(error))
    return any(is_users(file) or (running and file.startswith(tuple(models))) for file in inside)
