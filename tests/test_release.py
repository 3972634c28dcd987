"""The packages of a release can be built again, and contain what git tracks."""

import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip('build')
pytestmark = pytest.mark.packaging

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / '.ci' / 'build_release.py'


def git(*arguments, cwd):
    identity = ('-c', 'user.name=Test', '-c', 'user.email=test@example.com')
    result = subprocess.run(
        ['git', *identity, *arguments], cwd=cwd, capture_output=True, text=True, check=True
    )
    return result.stdout


def build(repository, target, umask=-1):
    return subprocess.run(
        [sys.executable, SCRIPT, target],
        cwd=repository, capture_output=True, text=True, timeout=250, umask=umask,
    )  # fmt: skip


@pytest.fixture(scope='module')
def committed(tmp_path_factory):
    """A repository with one commit: the files here that git lists."""
    target = tmp_path_factory.mktemp('committed')
    for name in git('ls-files', '-z', '-c', '-o', '--exclude-standard', cwd=ROOT).split('\0'):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    git('init', '-q', cwd=target)
    git('add', '.', cwd=target)
    git('commit', '-q', '-m', 'Import', cwd=target)
    return target


@pytest.fixture(scope='module')
def packages(committed, tmp_path_factory):
    target = tmp_path_factory.mktemp('dist')
    result = build(committed, target)
    assert result.returncode == 0, result.stderr[-3000:]
    return target


@pytest.fixture
def repository(committed, tmp_path):
    return Path(shutil.copytree(committed, tmp_path / 'repository'))


def test_a_build_of_another_user_has_equal_files(packages, repository, tmp_path):
    (repository / 'configs' / 'untracked.py').touch()
    result = build(repository, tmp_path / 'dist', umask=0o077)
    assert result.returncode == 0, result.stderr[-3000:]
    names = sorted(os.listdir(packages))
    assert names == sorted(os.listdir(tmp_path / 'dist'))
    assert [Path(name).suffix for name in names] == ['.whl', '.gz']
    for name in names:
        assert (packages / name).read_bytes() == (tmp_path / 'dist' / name).read_bytes(), name


def test_a_build_that_depends_on_the_time_is_refused(repository, tmp_path):
    setup = repository / 'setup.py'
    stamp = "Path('mmfocalnet/text.py').write_text(str(time.time_ns()))"
    text = setup.read_text().replace('setup(cmdclass', f'import time\n{stamp}\nsetup(cmdclass')
    setup.write_text(text)
    git('commit', '-q', '-a', '-m', 'Break the build', cwd=repository)
    result = build(repository, tmp_path / 'dist')
    assert result.returncode == 1
    assert 'differ' in result.stderr and '.whl' in result.stderr
    assert not (tmp_path / 'dist').exists()


def test_changes_that_are_not_committed_are_refused(repository, tmp_path):
    (repository / 'README.md').write_text('new')
    result = build(repository, tmp_path / 'dist')
    assert result.returncode == 2
    assert 'README.md' in result.stderr


def test_a_forgotten_and_a_stray_file_in_the_wheel_are_refused(
    packages, repository, tmp_path, monkeypatch
):
    (wheel,) = packages.glob('*.whl')
    wheel = Path(shutil.copy(wheel, tmp_path))
    with zipfile.ZipFile(wheel, 'a') as archive:
        archive.writestr('tests/stray.py', '')
    (repository / 'mmfocalnet' / 'forgotten.json').touch()
    git('add', '.', cwd=repository)
    git('commit', '-q', '-m', 'Forget package data', cwd=repository)
    monkeypatch.chdir(repository)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(SCRIPT))['check_contents'](wheel)
    assert 'tests/stray.py' in str(caught.value)
    assert 'mmfocalnet/forgotten.json' in str(caught.value)
