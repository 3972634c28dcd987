"""Tools in processes that are forked from one that has imported everything.

A fresh interpreter imports PyTorch and mmdet for seven seconds; a forked process starts at once.
"""

import contextlib
import gc
import json
import multiprocessing
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
import unformatted_configs  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload(
    [
        'mmfocalnet.registered',  # first: it provides the ops that mmdet looks for in mmcv
        'mmfocalnet.cli.config_flags',
        'mmfocalnet.cli.initial_checkpoint',
        'mmfocalnet.cli.runner',
        'mmfocalnet.inference',
        'mmfocalnet.ops.numba_kernels',
        'mmfocalnet.visualization',
        'mmdet.datasets',
        'mmdet.engine',
        'mmdet.evaluation',
        'mmdet.models',
        'mmseg.datasets',
        'mmseg.engine',
        'mmseg.evaluation',
        'mmseg.models',
        'setuptools',  # MMEngine lists the compilers
    ]
)
CLOCKS = ('time', 'data_time', 'memory')


def start(name, *arguments, out, err=None, cwd=ROOT, env=None, patch=None):
    """Start a tool in a separate process.

    Args:
        name: The tool, for example 'train'.
        *arguments: Its command line.
        out: The file that stdout is appended to.
        err: The file that stderr is appended to; that of stdout by default.
        cwd: The folder to run in.
        env: Environment variables to set.
        patch: A function of a module, which is called in the process before the tool.
    """
    process = FORKS.Process(
        target=_run_tool,
        args=(name, [*map(str, arguments)], str(out), str(err or out), cwd, env or {}, patch),
    )
    process.start()
    return process


def start_training(config, work_dir, *flags, options=(), **settings):
    """Start tools/train.py; what it prints goes to WORK_DIR.log."""
    arguments = (config, '--work-dir', work_dir, *flags, '--cfg-options', *options)
    return start('train', *arguments, out=f'{work_dir}.log', **settings)


def start_two_trainings(config, work_dir, *flags, **settings):
    """Start two processes of one distributed training run, as torchrun does."""
    return [
        start_training(config, work_dir, '--launcher', 'pytorch', *flags, env=rank, **settings)
        for rank in ranks_of_two()
    ]


def ranks_of_two():
    """The environment variables of two processes that torchrun would start."""
    launch = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    return [dict(launch, RANK=rank, LOCAL_RANK=rank) for rank in '01']


def run(name, *arguments, folder, code=0, timeout=100, **settings):
    """Run a tool to its end and assert its exit code; its output goes through files of a folder."""
    out, err = Path(folder, 'stdout'), Path(folder, 'stderr')
    process = start(name, *arguments, out=out, err=err, **settings)
    result = subprocess.CompletedProcess(
        [name, *arguments], end(process, timeout), out.read_text(), err.read_text()
    )
    assert result.returncode == code, result.stdout[-3000:] + result.stderr[-3000:]
    return result


def free_port():
    """A TCP port that no process listens to, as a string."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        return str(server.getsockname()[1])


def end(process, timeout=100):
    """Wait for the end of a process and return its exit code."""
    process.join(timeout)
    if process.exitcode is None:
        _kill_group(process)
        raise TimeoutError(f'a tool has not ended after {timeout} s')
    return process.exitcode


def kill(process, after=None):
    """Kill a process with SIGKILL after some seconds; return False if it has ended before."""
    process.join(after)
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
    code = end(process)
    _kill_group(process)  # PyTorch's data loading workers outlive their parent
    return code == -signal.SIGKILL


def wait_for(work_dir, text, timeout=100):
    """Wait until a training run has printed a text."""
    log = Path(f'{work_dir}.log')
    until = time.monotonic() + timeout
    while not (log.is_file() and text in log.read_text()):
        assert time.monotonic() < until, f'no {text!r}'
        time.sleep(0.02)


def children(parent):
    """The process ids of the children of a process."""
    found = []
    for status in Path('/proc').glob('[0-9]*/status'):
        with contextlib.suppress(OSError):  # it has ended
            if re.search(rf'^PPid:\s*{parent}$', status.read_text(), re.MULTILINE):
                found.append(int(status.parent.name))
    return found


def losses(work_dir):
    """Logged scalars by iteration, without times; the last value if one was logged twice."""
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


def _kill_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _run_tool(name, arguments, out, err, cwd, env, patch):
    gc.freeze()  # each dataset collects garbage
    os.setsid()
    os.environ.update(env)
    os.chdir(cwd)
    with open(out, 'a', buffering=1) as stdout, open(err, 'a', buffering=1) as stderr:
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        sys.argv = [f'tools/{name}.py', *arguments]
        if patch:
            patch()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            runpy.run_path(str(ROOT / f'tools/{name}.py'), run_name='__main__')
