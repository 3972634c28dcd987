"""Train a demo, compare its AP with that of the CPU, kill a second run and resume it."""

import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu_checks.report import Skipped, Wrong
from mmfocalnet.datasets import make_shapes
from mmfocalnet.visualization import read_history

ROOT = Path(__file__).resolve().parents[2]
AP = 'coco/bbox_mAP'
ITERATIONS = dict(cuda=200, cpu=20)
# Training images, validation images and images per batch.
SIZES = dict(cuda=(600, 80, 8), cpu=(16, 4, 2))
# Mean and standard deviation of box AP on the CPU with the seeds 0, 1 and 2: 0.252, 0.216, 0.253.
# OMP_NUM_THREADS=1 python tools/train.py configs/demo/mask_rcnn.py --cfg-options
#     train_cfg.max_iters=200 train_cfg.val_interval=200 param_scheduler.1.end=200
#     randomness.seed=SEED
CPU_AP, CPU_AP_STD = 0.240, 0.021
DEVIATIONS = 4
SCHEDULE = 200  # iterations of the learning rate's schedule
LOGGED = 10  # iterations between two lines of the log
TIMEOUT = 180  # seconds of a run


def run(report):
    with tempfile.TemporaryDirectory() as folder:
        report.check('train and evaluate', train_and_evaluate, report, Path(folder))
        report.check('kill and resume', kill_and_resume, report, Path(folder))


def train_and_evaluate(report, folder):
    require_full(report)
    end = ITERATIONS[report.device]
    Training(report.device, folder, 'complete', val_interval=end).finish()
    numbers = training_numbers(folder / 'complete', end)
    ap = read_history(folder / 'complete').validation[-1][AP]
    if not report.on_gpu:
        return numbers
    lowest = CPU_AP - DEVIATIONS * CPU_AP_STD
    if not ap >= lowest:
        raise Wrong(f'box AP {ap:.3f} is below {lowest:.3f}; on the CPU it is {CPU_AP:.3f}')
    return {'box AP': ap, 'on the CPU': CPU_AP} | numbers


def kill_and_resume(report, folder):
    require_full(report)
    # Written after the checkpoint, which is complete then.
    first = folder / 'killed/last_checkpoint'
    Training(report.device, folder, 'killed', interval=LOGGED).kill_after(first)
    Training(report.device, folder, 'killed', '--resume').finish()
    work_dir = folder / 'killed'
    if not read_history(work_dir).resumed:
        raise Wrong('the second run did not resume')
    return training_numbers(work_dir, ITERATIONS[report.device])


def require_full(report):
    if not report.full:
        raise Skipped('only with --full')


class Training:
    """A run of tools/train.py on generated images."""

    def __init__(self, device, folder, name, *flags, **settings):
        self.log = folder / f'{name}.log'
        command = [ROOT / 'tools/train.py', ROOT / 'configs/demo/mask_rcnn.py', *flags]
        command += ['--work-dir', folder / name, '--cfg-options']
        command += options(device, folder, **settings)
        hidden = {} if device == 'cuda' else dict(CUDA_VISIBLE_DEVICES='')
        with self.log.open('w') as log:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **hidden},
            )

    def finish(self):
        """Wait for the end of the run."""
        try:
            code = self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise Wrong(f'a run has not ended after {TIMEOUT} s') from None
        finally:
            self.process.kill()
        if code:
            raise Wrong(f'exit code {code}: {self.log.read_text()[-500:]}')

    def kill_after(self, file):
        """Kill the run when a file exists."""
        until = time.monotonic() + TIMEOUT
        try:
            while self.process.poll() is None and not file.exists() and time.monotonic() < until:
                time.sleep(0.05)
        finally:
            self.process.kill()
        if self.process.wait() != -signal.SIGKILL or not file.exists():
            raise Wrong(f'the run did not reach {file.name}: {self.log.read_text()[-500:]}')


def options(device, folder, val_interval=1000, interval=100):
    train_images, val_images, batch = SIZES[device]
    root = f'{make_shapes(folder / "shapes", train_images, val_images)}/coco/'
    annotations = f'{root}annotations/instances_val2017.json'
    return [
        *(f'{part}_dataloader.dataset.data_root={root}' for part in ('train', 'val', 'test')),
        *(f'{part}_evaluator.ann_file={annotations}' for part in ('val', 'test')),
        f'train_dataloader.batch_size={batch}',
        f'train_cfg.max_iters={ITERATIONS[device]}',
        f'train_cfg.val_interval={val_interval}',
        f'param_scheduler.1.end={SCHEDULE}',
        f'default_hooks.checkpoint.interval={interval}',
        f'default_hooks.logger.interval={LOGGED}',
    ]


def training_numbers(work_dir, end):
    """Loss, time and memory of a run that ended at an iteration."""
    entries = read_history(work_dir).training
    if entries[-1]['step'] != end or not (work_dir / f'iter_{end}.pth').is_file():
        raise Wrong(f'the run ended at iteration {entries[-1]["step"]}, not {end}')
    losses = [value for entry in entries for key, value in entry.items() if 'loss' in key]
    if not all(map(math.isfinite, losses)):
        raise Wrong('a loss is NaN or infinite')
    numbers = {'loss': entries[-1]['loss']}
    numbers['s per iteration'] = statistics.median(entry['time'] for entry in entries)
    if 'memory' in entries[-1]:
        numbers['memory, MiB'] = max(entry['memory'] for entry in entries)
    return numbers
