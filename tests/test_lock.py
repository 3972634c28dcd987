"""The lock files in requirements/ fit the requirements in pyproject.toml."""

import re
import sys
from pathlib import Path

import pytest
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest and mypy install it
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())
PROJECT, GROUPS = PYPROJECT['project'], PYPROJECT['dependency-groups']
EXTRAS = PROJECT['optional-dependencies']
# What "make lock" leaves out.
UNLOCKED = {'opencv-python', 'torch'}
LOCKS = {
    'build': GROUPS['build'],
    'mim': [*PROJECT['dependencies'], *EXTRAS['onedl'], *GROUPS['opencv'], *GROUPS['mim']],
    'onedl': [*PROJECT['dependencies'], *EXTRAS['onedl'], *GROUPS['opencv']],
    'release': GROUPS['release'],
}
LOCKS['onedl-test'] = [*LOCKS['onedl'], *EXTRAS['test']]
LOCKS['onedl-export'] = [*LOCKS['onedl-test'], *EXTRAS['export']]
LOCKS['onedl-docs'] = [*LOCKS['onedl-test'], *EXTRAS['docs']]
LOCKS['openmmlab-test'] = [
    *PROJECT['dependencies'], *EXTRAS['openmmlab'], *EXTRAS['test'], *GROUPS['opencv'],
]  # fmt: skip


def locked(name, python):
    """The versions in a lock file for a version of Python on this platform."""
    environment = {**default_environment(), 'python_version': python}
    environment['python_full_version'] = f'{python}.0'
    versions = {}
    for line in (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines():
        match = re.fullmatch(r'(\S+)==(\S+)(?: ; (.+))? \\', line)
        if match and (not match[3] or Marker(match[3]).evaluate(environment)):
            assert match[1] not in versions, f'{match[1]} has two versions'
            versions[match[1]] = match[2]
    return environment, versions


def test_every_lock_file_is_tested():
    assert {path.stem for path in (ROOT / 'requirements').iterdir()} == set(LOCKS)


@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12', '3.13'])
@pytest.mark.parametrize('name', LOCKS)
def test_a_lock_file_has_a_version_for_every_requirement(name, python):
    environment, versions = locked(name, python)
    for requirement in map(Requirement, LOCKS[name]):
        package = canonicalize_name(requirement.name)
        if package in UNLOCKED or not (
            requirement.marker is None or requirement.marker.evaluate(environment)
        ):
            continue
        assert package in versions, f'{package} is missing: run "make lock"'
        assert requirement.specifier.contains(versions[package]), (
            f'{package} {versions[package]} does not fit {requirement}: run "make lock"'
        )


def test_pytorch_and_opencv_for_desktops_are_not_locked():
    for name in LOCKS:
        assert not UNLOCKED & locked(name, '3.11')[1].keys()
