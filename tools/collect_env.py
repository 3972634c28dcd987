"""Print the environment for a bug report: python tools/collect_env.py"""

import argparse
import os
import signal
from importlib.metadata import PackageNotFoundError, version

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.error_handling import check_usage, report_errors


def parse_args():
    return argparse.ArgumentParser(description=__doc__).parse_args()


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

import torch
from mmengine.utils.dl_utils import collect_env

import mmfocalnet
from mmfocalnet.compat import ensure_mmcv_ops, ensure_panopticapi

STACKS = {
    'maintained forks (onedl)': (
        'onedl-mmengine',
        'onedl-mmcv',
        'onedl-mmdetection',
        'onedl-mmsegmentation',
    ),
    'upstream (openmmlab)': ('mmengine', 'mmcv', 'mmdet', 'mmsegmentation'),
}


def installed(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def stacks():
    """Return the installed packages of each stack."""
    found = {}
    for stack, names in STACKS.items():
        versions = {name: installed(name) for name in names if installed(name)}
        if versions:
            found[stack] = ', '.join(f'{name} {number}' for name, number in versions.items())
    return found


@report_errors
def main():
    parse_args()
    info = {
        key: value for key, value in collect_env().items() if key != 'PyTorch compiling details'
    }
    info['mmfocalnet'] = mmfocalnet.__version__
    for stack, packages in stacks().items():
        info[f'Stack: {stack}'] = packages
    if len(stacks()) > 1:
        info['WARNING'] = 'both stacks are installed and overwrite each other: uninstall one'
    info['mmcv ops'] = ensure_mmcv_ops()
    info['panopticapi'] = ensure_panopticapi()
    info['Devices'] = (
        ', '.join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or 'CPU'
    )
    info['Threads'] = f'{torch.get_num_threads()} (of {os.cpu_count()} cores)'
    for key, value in info.items():
        print(f'{key}: {value}')


if __name__ == '__main__':
    main()
