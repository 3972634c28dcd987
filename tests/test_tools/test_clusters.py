"""Training on two nodes of one machine: launches of torchrun, and a Slurm cluster."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from forked_tools import ROOT, assert_same, children, free_port, losses, state, wait_for
from slurm_cluster import missing_programs, slurm_cluster

CONFIG = 'configs/demo/mask_rcnn.py'
ITERATIONS = 8
LAST = f'iter_{ITERATIONS}.pth'
MIDDLE = f'Iter(train) [4/{ITERATIONS}]'
TORCHRUN = [sys.executable, '-m', 'torch.distributed.run']

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope='module')
def options(tiny_options):
    """Eight iterations, a checkpoint after every second and a validation after every fourth."""
    return [*tiny_options, f'train_cfg.max_iters={ITERATIONS}', 'train_cfg.val_interval=4']


@pytest.fixture(scope='module')
def start_node(options):
    """Start a launcher, which adds its output to WORK_DIR.log, as one of two nodes."""
    started = []

    def _start(launcher, work_dir, *flags, extra=(), **env):
        command = [*launcher, '--work-dir', work_dir, *flags, '--cfg-options', *options, *extra]
        with open(f'{work_dir}.log', 'a') as log:
            node = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, 'PYTHON': sys.executable, **env},
                cwd=ROOT,
                start_new_session=True,
            )
        started.append(node)
        return node

    yield _start
    for node in started:
        signal_node(node, signal.SIGKILL)


@pytest.fixture(scope='module')
def start_two(start_node):
    """Start tools/dist_train.sh twice, with one rendezvous."""

    def _start(work_dir, *flags, port, **settings):
        launcher = ['tools/dist_train.sh', CONFIG, '1']
        return [
            start_node(
                launcher, work_dir, *flags, NNODES='2', NODE_RANK=rank, PORT=port, **settings
            )
            for rank in '01'
        ]

    return _start


@pytest.fixture(scope='module')
def undisturbed(start_two, tmp_path_factory):
    """The work dir of a training run on two nodes."""
    work_dir = tmp_path_factory.mktemp('undisturbed') / 'run'
    assert ends(start_two(work_dir, port=free_port())) == [0, 0], log(work_dir)
    return work_dir


def signal_node(node, number):
    """Send a signal to a launcher and its processes, each of which has a process group."""
    for group in (node.pid, *children(node.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)


def wait_for_port(port, timeout=100):
    """Wait until a process listens to a TCP port."""
    until = time.monotonic() + timeout
    while True:
        with contextlib.suppress(ConnectionError):
            return socket.create_connection(('localhost', int(port))).close()
        assert time.monotonic() < until, f'nothing listens to port {port}'
        time.sleep(0.1)


def ends(nodes, timeout=280):
    return [node.wait(timeout) for node in nodes]


def log(work_dir):
    return Path(f'{work_dir}.log').read_text()


def assert_trained_together(work_dir):
    """One training of two processes, which wrote each checkpoint once."""
    assert re.search(r'GPU number: 2\b', log(work_dir))
    for iteration in range(2, ITERATIONS + 1, 2):
        assert log(work_dir).count(f'Saving checkpoint at {iteration} iterations') == 1
    assert 'coco/bbox_mAP' in log(work_dir)


def assert_equal_runs(one, other):
    assert_same(losses(one), losses(other))
    assert_same(state(one / LAST), state(other / LAST))


def test_two_nodes_train_together(undisturbed):
    assert_trained_together(undisturbed)


@pytest.mark.parametrize('lost', [0, 1])
def test_a_lost_node(start_two, undisturbed, tmp_path, lost):
    """The other node ends; started again with --resume, both end like an undisturbed run."""
    work_dir, port = tmp_path / 'run', free_port()
    nodes = start_two(work_dir, port=port)
    wait_for(work_dir, MIDDLE)
    signal_node(nodes.pop(lost), signal.SIGKILL)
    assert ends(nodes, timeout=100) == [1]
    assert not (work_dir / LAST).exists()
    assert ends(start_two(work_dir, '--resume', port=port)) == [0, 0], log(work_dir)
    assert_equal_runs(undisturbed, work_dir)


def test_a_node_that_does_not_respond(start_two, tmp_path):
    """It keeps its connections, as after a power failure: the other node ends by the timeout."""
    work_dir = tmp_path / 'run'
    timeout = ['env_cfg.dist_cfg.timeout=20']
    nodes = start_two(work_dir, port=free_port(), extra=timeout)
    wait_for(work_dir, MIDDLE)
    signal_node(nodes[1], signal.SIGSTOP)
    assert nodes[0].wait(150) == 1, log(work_dir)


def test_a_restarted_node_joins_an_elastic_launch(start_node, undisturbed, tmp_path):
    """A node that replaces another one hangs if torchrun shares its store (pytorch#135712)."""
    work_dir, port = tmp_path / 'run', free_port()
    launcher = [
        *TORCHRUN, '--nnodes=2', '--nproc-per-node=1', '--max-restarts=3', '--rdzv-backend=c10d',
        f'--rdzv-endpoint=localhost:{port}', 'tools/train.py', CONFIG,
        '--launcher', 'pytorch', '--resume',
    ]  # fmt: skip
    separate = dict(TORCH_DISABLE_SHARE_RDZV_TCP_STORE='1')
    first = start_node(launcher, work_dir, **separate)
    wait_for_port(port)  # the first one has the store of the rendezvous
    second = start_node(launcher, work_dir, **separate)
    wait_for(work_dir, MIDDLE)
    signal_node(second, signal.SIGKILL)
    second = start_node(launcher, work_dir, **separate)
    assert ends([first, second]) == [0, 0], log(work_dir)
    assert_equal_runs(undisturbed, work_dir)


@pytest.mark.parametrize('launcher', [TORCHRUN, [sys.executable]], ids=['torchrun', 'python'])
def test_the_pods_of_kubernetes_train_together(start_node, undisturbed, tmp_path, launcher):
    """The command of docs/pytorchjob.yaml, with the variables that the operator sets."""
    work_dir, port = tmp_path / 'run', free_port()
    job = yaml.safe_load((ROOT / 'docs/pytorchjob.yaml').read_text())
    nodes = []
    for rank, pod in enumerate(job['spec']['pytorchReplicaSpecs'].values()):
        (container,) = pod['template']['spec']['containers']
        program, tool, _, *flags = container['command']
        flags.remove('--auto-scale-lr')  # to compare with a run without it
        assert (program, tool) == ('torchrun', '/opt/mmfocalnet/tools/train.py')
        address = dict(MASTER_ADDR='localhost', MASTER_PORT=port)
        operator = dict(address, WORLD_SIZE='2', RANK=str(rank), PET_NODE_RANK=str(rank))
        operator.update({f'PET_{name}': value for name, value in address.items()})
        operator.update(PET_NNODES='2', PET_NPROC_PER_NODE='1')
        command = [*launcher, 'tools/train.py', CONFIG, *flags]
        nodes.append(start_node(command, work_dir, **operator))
    assert ends(nodes) == [0, 0], log(work_dir)
    assert_trained_together(work_dir)
    assert_equal_runs(undisturbed, work_dir)


# ------------------------------------------------------------------------------------------------
# Slurm
# ------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def slurm(tmp_path_factory):
    """Run a command on a Slurm cluster of two nodes; assert that it succeeds, or fails."""
    if missing := missing_programs():
        pytest.skip(f"needs root and Debian's packages munge and slurm-wlm: no {missing}")
    with slurm_cluster(tmp_path_factory.mktemp('slurm')) as cluster:
        env = dict(PYTHON=sys.executable, MASTER_PORT=free_port())
        env.update(GPUS='2', GPUS_PER_NODE='1', CPUS_PER_TASK='1')

        def run(*command, fails=False, **variables):
            result = subprocess.run(
                [str(part) for part in command],
                env={**os.environ, **cluster, **env, **variables},
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=280,
            )
            output = result.stdout + result.stderr
            assert (result.returncode != 0) == fails, output[-3000:]
            return output

        yield run


def test_slurm_trains_on_two_nodes(slurm, options, undisturbed, tmp_path):
    """With the same result as two launches of torchrun."""
    work_dir = tmp_path / 'run'
    slurm(
        'tools/slurm_train.sh', 'gpus', 'job', CONFIG, work_dir, '--cfg-options', *options,
        SRUN_ARGS=f'--output={tmp_path}/node-%n.log',
    )  # fmt: skip
    assert sorted(path.name for path in tmp_path.glob('*.log')) == ['node-0.log', 'node-1.log']
    (tmp_path / 'node-0.log').rename(f'{work_dir}.log')
    assert_trained_together(work_dir)
    assert_equal_runs(undisturbed, work_dir)


def test_a_failed_task_stops_the_slurm_job(slurm, tmp_path):
    """Also the other task, which waits for it."""
    config = tmp_path / 'config.py'
    config.write_text(
        f"_base_ = '{ROOT / CONFIG}'\n"
        'import os\n'
        "if os.environ['SLURM_PROCID'] == '1':\n"
        "    raise OSError('no such disk')\n"
    )
    output = slurm('tools/slurm_train.sh', 'gpus', 'job', config, tmp_path / 'run', fails=True)
    assert output.count('train.py: ') == 1
    assert 'task 1: Exited with exit code 2' in output
    assert slurm('squeue', '--noheader', '--states=running') == ''


def test_a_requeued_slurm_job_resumes(slurm, options, undisturbed, tmp_path):
    work_dir = tmp_path / 'run'
    train = shlex.join(
        ['tools/slurm_train.sh', 'gpus', 'job', CONFIG, str(work_dir), '--resume']
        + ['--cfg-options', *options]
    )
    job = slurm(
        'sbatch', '--parsable', '--partition=gpus', '--nodes=2', '--ntasks-per-node=1',
        '--gres=gpu:1', '--requeue', '--open-mode=append', f'--output={work_dir}.log',
        f'--wrap={train}; echo exit code $?',
    ).strip()  # fmt: skip
    wait_for(work_dir, MIDDLE)
    slurm('scontrol', 'requeue', job)
    wait_for(work_dir, 'exit code 0', timeout=280)
    assert_equal_runs(undisturbed, work_dir)
