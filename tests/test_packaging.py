"""Wheels that are built from the tree and from the sdist work without a checkout."""

import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

# The first version that reads the license in pyproject.toml.
pytest.importorskip('setuptools', minversion='77')
pytestmark = pytest.mark.packaging

ROOT = Path(__file__).resolve().parents[1]
MIM = 'mmfocalnet/.mim/'
USE = """
import sys
from pathlib import Path

import mmfocalnet
from mmengine.config import Config
from mmengine.config.utils import _get_cfg_metainfo
from mmengine.registry import MODELS, init_default_scope
import torch

package = Path(mmfocalnet.__file__).parent
assert package.parent == Path(sys.argv[1]), package
# As mmengine finds the configs of mmdet.
info = _get_cfg_metainfo(str(package), 'mask_rcnn/focalnet_t_1x.py')
cfg = Config.fromfile(package / '.mim' / info['Config'])
init_default_scope(cfg.default_scope)
with torch.device('meta'):
    model = MODELS.build(cfg.model)
print(type(model).__name__, type(model.backbone).__module__)
"""


def run(*command, cwd, **env):
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def pip(command, *arguments, cwd):
    run('-m', 'pip', command, '--quiet', '--no-index', '--no-deps', *arguments, cwd=cwd)


def build_wheel(tree, target):
    pip('wheel', '--no-build-isolation', '--wheel-dir', target, '.', cwd=tree)
    (wheel,) = target.glob('*.whl')
    return wheel


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.CRC for info in archive.infolist()}


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    """A copy of the files that git lists, so that nothing is built in the checkout."""
    target = tmp_path_factory.mktemp('copy') / 'mmfocalnet'
    listed = subprocess.run(
        ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split('\0')):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture(scope='module')
def packaged(tree):
    """The files of the tree that a wheel contains in mmfocalnet/.mim."""
    files = [path for folder in ('configs', 'tools') for path in (tree / folder).rglob('*')]
    names = {path.relative_to(tree).as_posix() for path in files if path.is_file()}
    return names | {'model-index.yml'}


@pytest.fixture(scope='module')
def wheel(tree, packaged, tmp_path_factory):
    """Built in a tree with a cache of Python and a removed config of an earlier build."""
    for stray in ('tools/__pycache__/train.pyc', f'build/lib/{MIM}configs/atss/gone.py'):
        (tree / stray).parent.mkdir(parents=True)
        (tree / stray).touch()
    return build_wheel(tree, tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp('empty')
    pip('install', '--no-compile', '--target', target, wheel, cwd=target)
    return target


def test_the_wheel_contains_configs_and_tools(wheel, tree, packaged):
    with zipfile.ZipFile(wheel) as archive:
        assert 'mmfocalnet/py.typed' in archive.namelist()
        names = [name for name in archive.namelist() if name.startswith(MIM)]
        assert sorted(name.removeprefix(MIM) for name in names) == sorted(packaged)
        for name in names:
            assert archive.read(name) == (tree / name.removeprefix(MIM)).read_bytes(), name


def test_the_sdist_builds_the_same_wheel(wheel, tree, tmp_path):
    code = 'import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])'
    run('-c', code, tmp_path, cwd=tree)
    (sdist,) = tmp_path.glob('*.tar.gz')
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / 'unpacked', filter='data')
    (source,) = (tmp_path / 'unpacked').iterdir()
    again = build_wheel(source, tmp_path)
    assert contents(again) == contents(wheel)


def test_the_installed_package_builds_a_model_from_its_config(installed, tmp_path):
    out = run('-c', USE, installed, cwd=tmp_path, PYTHONPATH=str(installed))
    assert out.split()[-2:] == ['MaskRCNN', 'mmfocalnet.models.focalnet']


def test_the_installed_tools_run(installed, tmp_path):
    tools = installed / MIM / 'tools'
    assert '--amp' in run(tools / 'train.py', '--help', cwd=tmp_path, PYTHONPATH=str(installed))
    for script in tools.glob('*.sh'):
        assert script.stat().st_mode & stat.S_IXUSR, script.name
