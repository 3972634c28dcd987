"""Medians of all rows of a table, timed in turn, and the memory of a training step."""

import logging
import os
import statistics
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarking.detectors import DETECTORS, detectors, dino
from benchmarking.networks import backbones, operators
from benchmarking.timing import TOTAL, Machine, seconds
from mmfocalnet.errors import UserError


class Times(NamedTuple):
    """Medians of a row."""

    first: float  # seconds of the first training step and prediction
    predict: dict[str, float]  # seconds of each phase and in total
    step: dict[str, float]
    flops: tuple[int, int]  # of the forward pass in a prediction and in a training step

    def floors(self, machine):
        """Seconds of the matrix products and convolutions; gradients take twice the forward."""
        predict, step = self.flops
        return predict / machine.rate, 3 * step / machine.rate


def prepare(args):
    """Set up a process. The parent and the processes that measure memory do so alike."""
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)  # MMEngine logs how it initializes each weight
    # The first call compiles, whatever earlier runs have cached.
    os.environ['TORCHINDUCTOR_FORCE_DISABLE_CACHES'] = '1'
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device cuda: PyTorch finds no GPU. Use --device cpu.')
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)


def rows_of(what, args):
    if what in DETECTORS:
        return detectors(what, args)
    return dict(operator=operators, backbone=backbones, dino=dino)[what](args)


def measure(rows, shape, args):
    """Medians per row: prediction, and a complete training step; and the rates of the machine."""
    machine = Machine(args)
    built = {}
    for name, make in rows.items():
        try:
            network = make()
            data = network.inputs(shape)
            first = seconds(partial(first_calls, network, data), args.device)
        except (ImportError, UserError) as error:
            print(f'{name}: skipped ({error})')
            continue
        built[name] = (network, data, first)
    taken = {name: ([], []) for name in built}
    for _ in range(args.rounds):
        for name, (network, data, _) in built.items():
            for function, results in zip((network.predict, network.step), taken[name], strict=True):
                results.append(phase_seconds(function, network, data))
            machine.measure()
    times = {
        name: Times(first, *map(medians, taken[name]), network.count_flops(data))
        for name, (network, data, first) in built.items()
    }
    return times, machine


def step_seconds(make, shape, args):
    """Median of the training steps of one row."""
    network = make()
    data = network.inputs(shape)
    network.step(data)
    step = partial(network.step, data)
    return statistics.median(seconds(step, args.device) for _ in range(args.rounds))


def first_calls(network, data):
    network.step(data)
    network.predict(data)


def phase_seconds(function, network, data):
    network.phases.seconds.clear()
    total = seconds(partial(function, data), network.args.device)
    return dict(network.phases.seconds) | {TOTAL: total}


def medians(results):
    return {key: statistics.median(result[key] for result in results) for key in results[0]}


def peak_memory(what, name, shape, args):
    """MiB that a training step needs beyond the model and its input, measured in a new process."""
    # Otherwise glibc's heap keeps unused memory between tensors of up to 32 MiB.
    os.environ['MALLOC_MMAP_THRESHOLD_'] = str(2**20)
    context = get_context('forkserver')
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_memory, what, name, shape, args).result()


def _peak_memory(what, name, shape, args):
    prepare(args)
    network = rows_of(what, args)[name]()
    network.step(network.inputs(small(shape)))
    network.model.zero_grad(set_to_none=True)
    data = network.inputs(shape)
    if args.device == 'cuda':
        return peak_gpu_memory(network, data)
    # Resets the peak of resident memory that Linux reports.
    Path('/proc/self/clear_refs').write_text('5')
    before = resident('VmRSS')
    network.step(data)
    return resident('VmHWM') - before


def peak_gpu_memory(network, data):
    """MiB that a training step needs beyond the model and its input."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    network.step(data)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def small(shape):
    """Shape of a smaller input of the same kind, for compilation and imports.

    DINO selects 900 queries of an image.
    """
    return (shape[0], 3, 256, 256) if shape[1] == 3 else (1, 8, 8, shape[3])


def resident(field):
    status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    return int(status[field].split()[0]) / 1024
