"""Build the wheel and the sdist of the last commit twice, compare them, check the contents.

    python .ci/build_release.py dist

Needs the packages build and setuptools. The first wheel is built from the files of the commit, the
second one from the sdist.
"""

import argparse
import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path


def git(*arguments: str) -> bytes:
    """Run git in the current folder and return its output."""
    return subprocess.run(['git', *arguments], check=True, stdout=subprocess.PIPE).stdout


def build(source: Path, target: Path, commit_time: int, *flags: str) -> tuple[Path, Path]:
    """Build the wheel and the sdist from a copy of the committed files."""
    with tarfile.open(fileobj=io.BytesIO(git('archive', '--format=tar', 'HEAD'))) as archive:
        archive.extractall(source, filter='data')
    subprocess.run(
        [sys.executable, '-m', 'build', '--no-isolation', *flags, '--outdir', target, source],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, 'SOURCE_DATE_EPOCH': str(commit_time)},
    )
    (wheel,), (sdist,) = target.glob('*.whl'), target.glob('*.tar.gz')
    normalize(sdist, commit_time)
    return wheel, sdist


def normalize(sdist: Path, commit_time: int) -> None:
    """Replace times and owners, which setuptools takes from the disk; keep sorted files only."""
    with tarfile.open(sdist) as archive:
        files = sorted(filter(tarfile.TarInfo.isfile, archive), key=lambda member: member.name)
        content = [archive.extractfile(member).read() for member in files]
    with (
        gzip.GzipFile(sdist, 'wb', mtime=commit_time) as compressed,
        tarfile.open(fileobj=compressed, mode='w') as archive,
    ):
        for member, data in zip(files, content, strict=True):
            member.mtime, member.uid, member.gid = commit_time, 0, 0
            member.uname, member.gname, member.pax_headers = '', '', {}
            archive.addfile(member, io.BytesIO(data))


def check_contents(wheel: Path) -> None:
    """Compare the files in the wheel with those that git tracks."""
    tracked = git('ls-tree', '-r', '-z', '--name-only', 'HEAD').decode().split('\0')
    metadata = '-'.join(wheel.name.split('-')[:2]) + '.dist-info/'
    names = ('METADATA', 'RECORD', 'WHEEL', 'top_level.txt', 'licenses/LICENSE')
    expected = {metadata + name for name in names}
    expected |= {name for name in tracked if name.startswith('mmfocalnet/')}
    packaged = ('configs/', 'tools/', 'model-index.yml')
    expected |= {'mmfocalnet/.mim/' + name for name in tracked if name.startswith(packaged)}
    with zipfile.ZipFile(wheel) as archive:
        found = set(archive.namelist())
    problems = [f'{wheel.name} lacks {name}' for name in sorted(expected - found)]
    problems += [f'{wheel.name} should not contain {name}' for name in sorted(found - expected)]
    if problems:
        sys.exit('\n'.join(problems) + '\nFix setup.py or pyproject.toml.')


def main() -> None:
    """Build, compare and check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('target', type=Path, help='folder for the wheel and the sdist')
    target = parser.parse_args().target
    if changes := git('status', '--porcelain', '--untracked-files=no').decode():
        parser.error(f'these changes are not committed; commit or stash them:\n{changes}')
    commit_time = int(git('log', '-1', '--format=%ct'))
    os.umask(0o022)  # Wheels contain the modes of files.
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        first = build(work / 'source', work / 'first', commit_time, '--sdist', '--wheel')
        second = build(work / 'other' / 'source', work / 'second', commit_time)
        for one, other in zip(first, second, strict=True):
            if one.read_bytes() != other.read_bytes():
                sys.exit(f'two builds of {one.name} differ')
        check_contents(first[0])
        target.mkdir(exist_ok=True)
        for package in first:
            shutil.copy(package, target)
            print(target / package.name)


if __name__ == '__main__':
    main()
