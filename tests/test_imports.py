"""What is imported when: fast help of the tools, and registration when MMEngine is used."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import mmfocalnet

ROOT = Path(__file__).resolve().parents[1]
TOOLS = sorted((ROOT / 'tools').glob('*.py'))
SLOW = {'cv2', 'matplotlib', 'mmcv', 'mmdet', 'mmengine', 'numpy', 'torch', 'yaml'}


def run_timed(*command, **settings):
    """Run Python; return what it did and the slow packages that it imported."""
    command = [sys.executable, '-X', 'importtime', *map(str, command)]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **settings)
    imported = {line.rpartition('|')[2].strip() for line in done.stderr.splitlines()}
    assert 'argparse' in imported or 'mmfocalnet' in imported, 'not the format of importtime'
    return done, imported & SLOW


@pytest.mark.parametrize('tool', TOOLS, ids=lambda path: path.stem)
def test_help_needs_no_slow_import(tool):
    done, slow = run_timed(tool, '--help', stdout=subprocess.PIPE)
    assert done.returncode == 0 and done.stdout.startswith('usage:')
    assert not slow


@pytest.mark.parametrize('name', ['train', 'infer', 'collect_env'])
def test_usage_errors_need_no_slow_import(name):
    done, slow = run_timed(ROOT / f'tools/{name}.py', '--no-such-flag')
    assert done.returncode == 2 and 'usage:' in done.stderr
    assert not slow


def test_help_with_a_closed_reader():
    reader, writer = os.pipe()
    os.close(reader)
    buffered = {key: value for key, value in os.environ.items() if key != 'PYTHONUNBUFFERED'}
    done, _ = run_timed(TOOLS[0], '--help', stdout=writer, env=buffered)
    os.close(writer)
    assert done.returncode == 141
    assert 'BrokenPipeError' not in done.stderr


def test_importing_the_package_needs_no_slow_import():
    code = 'import mmfocalnet; assert {*mmfocalnet.__all__} <= {*dir(mmfocalnet)}'
    done, slow = run_timed('-c', code)
    assert done.returncode == 0, done.stderr
    assert not slow


def test_public_names_are_all_that_is_registered():
    assert sorted([*mmfocalnet.registered.__all__, '__version__']) == sorted(mmfocalnet.__all__)
    assert all(hasattr(mmfocalnet, name) for name in mmfocalnet.__all__)
    assert not hasattr(mmfocalnet, 'no_such_name')


BUILD = """
from mmengine.registry import MODELS
print(type(MODELS.build(dict(type='FocalNet', embed_dim=8, depths=[1]))).__module__)
"""
FOCALNET = 'mmfocalnet.models.focalnet'
# Code by the name of the case, and the last line that it prints.
CASES = {
    f'import {names}, then build': (f'import {names}\n{BUILD}', FOCALNET)
    for names in (
        'mmfocalnet',
        'mmfocalnet, mmcv.ops',
        'mmdet, mmfocalnet',
        'mmfocalnet.models.focalnet',
    )
}
CASES['custom_imports, then build'] = (
    f"""
from mmengine.config import Config
Config.fromfile('configs/demo/mask_rcnn.py')
{BUILD}
""",
    FOCALNET,
)
CASES['a pickle, then build'] = (
    f"""
import pickle
pickle.loads(bytes.fromhex(sys.argv[2]))
{BUILD}
""",
    FOCALNET,
)
CASES["panopticapi and mmdet's registry"] = (
    """
import mmdet, mmfocalnet
from mmdet.evaluation.functional.panoptic_utils import PQStat
from mmdet.registry import MODELS
print(PQStat.__module__, MODELS.get('FocalNet').__module__)
""",
    f'mmfocalnet.compat.panopticapi {FOCALNET}',
)
CASES['threads'] = (
    """
import mmfocalnet
from concurrent.futures import ThreadPoolExecutor
from mmengine.registry import MODELS
with ThreadPoolExecutor(4) as pool:
    [found] = {*pool.map(MODELS.get, ['FocalNet'] * 4)}
print(found.__module__)
""",
    FOCALNET,
)
CASES['a failing import'] = (
    """
import mmfocalnet
from mmengine.registry import MODELS
sys.modules['mmfocalnet.evaluation'] = None
try:
    MODELS.get('FocalNet')
except ImportError as error:
    print(error.name)
""",
    'mmfocalnet.evaluation',
)
CASES['checkpoint loaders'] = (
    """
import mmfocalnet
from mmengine.runner.checkpoint import CheckpointLoader
print(CheckpointLoader._schemes['https://'].__module__)
""",
    'mmfocalnet.checkpoints.url_schemes',
)

# Runs each case in a process that is forked after the imports that all of them need.
FORK = """
import contextlib, gc, importlib, json, os, sys, warnings
warnings.simplefilter('ignore')
for name in ('cv2', 'torch.distributed.fsdp', 'torch.distributed.optim', 'transformers'):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
gc.freeze()
for name, code in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        exec(code)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
    print(f'END {name}', flush=True)
"""


@pytest.fixture(scope='module')
def results():
    """The last line that each case prints."""
    codes = json.dumps({name: code for name, (code, _) in CASES.items()})
    net = pickle.dumps(mmfocalnet.FocalNet(embed_dim=8, depths=[1]))
    done = subprocess.run(
        [sys.executable, '-c', FORK, codes, net.hex()], cwd=ROOT, capture_output=True, text=True
    )
    print(done.stderr)  # the tracebacks of cases that fail
    assert done.returncode == 0
    found, last = {}, None
    for line in done.stdout.splitlines():
        if line.startswith('END '):
            found[line.removeprefix('END ')], last = last, None
        else:
            last = line
    return found


@pytest.mark.parametrize('name', CASES)
def test_registration(results, name):
    assert results[name] == CASES[name][1]
