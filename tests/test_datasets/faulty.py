"""Small datasets to damage, and the two tools that must agree on what is wrong with them."""

import json
import shutil
from pathlib import Path

from mmengine.config import Config

from mmfocalnet.datasets import make_shapes

ROOT = Path(__file__).resolve().parents[2]


def make_small(folder):
    """The generated shapes with four images to train on and two to validate."""
    return make_shapes(folder, 4, 2, size=64)


def copy_small(made, home):
    """A copy of them, to be damaged, where the demos expect it when they run in HOME."""
    return shutil.copytree(made, home / 'data/shapes')


def change(path, edit):
    """Rewrite a JSON file with what a function does to its content or returns."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(edit(content) or content))


def write_flat(name, folder):
    """Write a demo without its bases, which is read in a tenth of the time; returns the path."""
    path = folder / f'{name}.py'
    cfg = Config.fromfile(ROOT / f'configs/demo/{name}.py').to_dict()
    path.write_text('\n'.join(f'{key} = {value!r}' for key, value in cfg.items()))
    return path


def assert_refused(tool, config, *tokens, options=(), test=False):
    """Let both tools find a fault in the data below the current folder.

    Args:
        tool: The fixture.
        config: Path of a config.
        *tokens: What must stand in what both print: the file, the id, the field.
        options: Overrides of the config.
        test: Whether the data is that of tools/test.py, otherwise that of tools/train.py.
    """
    flags = ['--cfg-options', *options] if options else []
    code, out, error = tool('check_dataset', config, '--out', 'charts', *flags)
    assert code == 1, out + error
    assert_names(out, tokens)
    name, *arguments = ('test', config, 'none.pth') if test else ('train', config)
    code, out, error = tool(name, *arguments, *flags)
    assert code == 2, error
    assert_names(error, tokens)
    assert not Path('work_dirs').exists()


def assert_names(text, tokens):
    """All of some tokens stand in a text, which has no traceback."""
    assert 'Traceback' not in text
    assert [token for token in tokens if token not in text] == [], text
