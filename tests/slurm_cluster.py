"""A Slurm cluster of two nodes on one machine, of Debian's packages munge and slurm-wlm."""

import contextlib
import os
import secrets
import shutil
import subprocess
import time

from forked_tools import ROOT, free_port


def missing_programs():
    """What the cluster needs and this machine or user lacks, as text."""
    missing = [name for name in ('munged', 'slurmctld', 'slurmd') if not shutil.which(name)]
    return ', '.join(missing + ['root'] * (os.geteuid() != 0))


@contextlib.contextmanager
def slurm_cluster(folder):
    """Start the daemons; yield the environment variables for Slurm's commands; stop all.

    Args:
        folder: For the configuration and state.
    """
    ports = [free_port() for _ in range(3)]
    template = (ROOT / 'tests/data/slurm.conf').read_text()
    (folder / 'slurm.conf').write_text(template.format(folder=folder, ports=ports))
    (folder / 'gres.conf').write_text('Name=gpu File=/dev/null\n')
    (folder / 'munge.key').write_bytes(secrets.token_bytes(128))
    (folder / 'munge.key').chmod(0o600)
    env = dict(SLURM_CONF=f'{folder}/slurm.conf')
    munge = [f'--{name}={folder}/munge.{name}' for name in ('socket', 'pid-file', 'seed-file')]
    with contextlib.ExitStack() as stack:
        for number, command in enumerate(
            (
                # The folder is private, which munge warns about.
                ['munged', '--foreground', '--force', f'--key-file={folder}/munge.key', *munge],
                ['slurmctld', '-D', '-i'],
                ['slurmd', '-D', '-N', '127.0.0.1'],
                ['slurmd', '-D', '-N', '127.0.0.2'],
            )
        ):
            log = stack.enter_context(open(folder / f'{number}.log', 'w'))
            stack.enter_context(_running(command, env, log))
        stack.callback(_cancel_jobs, env)
        _wait(env, ['sinfo', '--noheader', '--Node', '--format=%T'], 'idle\nidle\n')
        yield env


@contextlib.contextmanager
def _running(command, env, log):
    # The kernel ends it if this process is killed.
    process = subprocess.Popen(
        ['setpriv', '--pdeathsig', 'KILL', *command],
        env={**os.environ, **env},
        stdout=log,
        stderr=log,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def _cancel_jobs(env):
    subprocess.run(['scancel', '--user=root'], env={**os.environ, **env}, check=True)
    _wait(env, ['squeue', '--noheader'], '')


def _wait(env, command, output, timeout=60):
    """Wait until a command prints an output."""
    until = time.monotonic() + timeout
    while True:
        result = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)
        if result.stdout == output and not result.returncode:
            return
        assert time.monotonic() < until, result.stdout + result.stderr
        time.sleep(0.2)
