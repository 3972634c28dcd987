"""Versions, and the rates of matrix products and copies of the device."""

import platform
import subprocess

import torch
from benchmarking import tables
from collect_env import installed, stacks

import mmfocalnet
from gpu_checks.operators import exact
from gpu_checks.speed import median_seconds
from mmfocalnet.compat import ensure_mmcv_ops

# Side of the matrices and number of copied floats.
MATRIX_SIZE = dict(cuda=8192, cpu=512)
COPIED_FLOATS = dict(cuda=2**29, cpu=2**22)


def run(report):
    report.check('versions', versions, report)
    report.check('rates', rates, report)


def versions(report):
    found = report.environment
    found.update({'Python': platform.python_version(), 'PyTorch': torch.__version__})
    found.update({'mmfocalnet': mmfocalnet.__version__, 'device': tables.processor(report)})
    for package in ('triton', 'numpy', 'numba', 'torchvision', 'transformers', 'timm'):
        found[package] = installed(package) or 'not installed'
    found.update(stacks())
    found['mmcv ops'] = ensure_mmcv_ops()
    if report.on_gpu:
        gpu = torch.cuda.get_device_properties(0)
        found['GPUs'], found['driver'] = torch.cuda.device_count(), driver()
        found['compute capability'] = f'{gpu.major}.{gpu.minor}'
        found['memory, GiB'] = f'{gpu.total_memory / 2**30:.1f}'
        found['CUDA, cuDNN'] = f'{torch.version.cuda}, {torch.backends.cudnn.version()}'
    return {'device': found['device']}


def driver():
    """Version of the GPU's driver, if nvidia-smi is available."""
    command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f'unknown ({error})'


def rates(report):
    """TFLOP/s of matrix products by precision, and TB/s read and written by a copy."""
    size = MATRIX_SIZE[report.device]
    matrix = torch.randn(size, size, device=report.device)
    products = {'float32': (matrix, False)}
    if report.on_gpu:
        products |= {'tf32': (matrix, True), 'bfloat16': (matrix.bfloat16(), False)}
    for name, (factor, tf32) in products.items():
        with exact(tf32):
            taken = median_seconds(torch.mm, [(factor, factor)], report.device)
        report.rates[name] = 2 * size**3 / taken
    source = torch.randn(COPIED_FLOATS[report.device], device=report.device)
    taken = median_seconds(torch.empty_like(source).copy_, [(source,)], report.device)
    report.rates['copy'] = 2 * source.nbytes / taken
    units = {name: 'TB/s' if name == 'copy' else 'TFLOP/s' for name in report.rates}
    found = {f'{name}, {unit}': report.rates[name] / 1e12 for name, unit in units.items()}
    report.environment.update({name: f'{rate:.3g}' for name, rate in found.items()})
    return found
