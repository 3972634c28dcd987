"""Build script; the metadata is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


def mim_files() -> list[str]:
    """List the files that wheels contain in mmfocalnet/.mim, where mim looks for them."""
    files = [path for folder in ('configs', 'tools') for path in Path(folder).rglob('*')]
    return ['model-index.yml'] + sorted(
        str(path) for path in files if path.is_file() and '__pycache__' not in path.parts
    )


class BuildWithMim(build_py):
    """Build the package with the configs and tools."""

    def run(self) -> None:
        """Copy configs and tools, unless the installation is editable."""
        super().run()
        if self.editable_mode:
            return
        mim = Path(self.build_lib, 'mmfocalnet', '.mim')
        # An earlier build may have left files that were removed since.
        shutil.rmtree(mim, ignore_errors=True)
        for file in mim_files():
            (mim / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, mim / file)

    def get_source_files(self) -> list[str]:
        """Add configs and tools to the sdist, so that it builds the same wheel."""
        return super().get_source_files() + mim_files()


setup(cmdclass={'build_py': BuildWithMim})
