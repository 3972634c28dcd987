"""Runs of tools/train.py forked from a process that has imported everything, so in seconds."""

import contextlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload(
    ['mmfocalnet.cli', 'mmdet.models', 'mmdet.datasets', 'mmdet.engine', 'mmdet.evaluation']
)
CLOCKS = ('time', 'data_time', 'memory')


def start(config, work_dir, *flags, options=(), patch=None, env=None):
    """Start tools/train.py in a process of its own; what it prints goes to WORK_DIR.log.

    ``patch`` is a function of a module that is called before it, ``env`` its environment's part.
    """
    arguments = [config, '--work-dir', str(work_dir), *flags, '--cfg-options', *options]
    process = FORKS.Process(target=_train, args=(arguments, f'{work_dir}.log', patch, env or {}))
    process.start()
    return process


def start_two(config, work_dir, *flags, port, **settings):
    """Start two processes of one launch, as torchrun does."""
    launch = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    return [
        start(
            config, work_dir, '--launcher', 'pytorch', *flags,
            env=dict(launch, RANK=rank, LOCAL_RANK=rank), **settings,
        )
        for rank in '01'
    ]  # fmt: skip


def end(process, timeout=120):
    """Wait for the end of a run and return its exit code."""
    process.join(timeout)
    assert process.exitcode is not None, 'it still runs'
    return process.exitcode


def kill(process, after=None):
    """Kill -9 a run after some seconds, unless it has ended; say whether it was killed."""
    process.join(after)
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
    code = end(process)
    with contextlib.suppress(ProcessLookupError):  # PyTorch's data loading workers outlive a kill
        os.killpg(process.pid, signal.SIGKILL)
    return code == -signal.SIGKILL


def wait_for(work_dir, text, timeout=120):
    """Wait until a run has printed something."""
    log = Path(f'{work_dir}.log')
    until = time.monotonic() + timeout
    while not (log.is_file() and text in log.read_text()):
        assert time.monotonic() < until, f'no {text!r}'
        time.sleep(0.02)


def losses(work_dir):
    """Everything that was logged, by iteration, but clocks; of what was done twice, the last."""
    lines = [
        json.loads(line)
        for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
        if line.startswith('{') and line.endswith('}')  # a kill may cut the last line
    ]
    logged = {line['step']: {} for line in lines}
    for line in lines:
        logged[line['step']].update({key: line[key] for key in line if key not in CLOCKS})
    return logged


def state(checkpoint):
    """Weights, optimizer, EMA and schedule of a checkpoint, as a list of names and values."""
    content = torch.load(checkpoint, weights_only=False)
    return dict(
        _leaves({key: content[key] for key in content if key not in ('meta', 'message_hub')})
    )


def assert_same(one, other):
    """Bit for bit."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[key]), key
        else:
            assert value == other[key], key


def _leaves(node, name=''):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f'{name}/{key}')
    elif isinstance(node, (list, tuple)):
        for number, value in enumerate(node):
            yield from _leaves(value, f'{name}/{number}')
    else:
        yield name, node


def _train(arguments, log, patch, env):
    os.setsid()
    os.environ.update(env)
    os.chdir(ROOT)
    with open(log, 'a', buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.argv = ['tools/train.py', *arguments]
        if patch:
            patch()
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            runpy.run_path('tools/train.py', run_name='__main__')
