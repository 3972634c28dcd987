"""Run the tools that must agree on what is wrong with a dataset."""

import json
import re
from itertools import count
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNS = count()
TINY = [
    'model.backbone.embed_dim=8',
    'model.backbone.depths=[1,1,1,1]',
    'train_cfg.max_iters=1',
    'train_cfg.val_interval=1',
    'default_hooks.logger.interval=1',
    'default_hooks.checkpoint.interval=-1',
]


def change(path, edit):
    """Rewrite a JSON file with what a function makes of its content, in place or returned."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(edit(content) or content))


def run(tool, name, config, *options):
    """Run a tool with overrides; returns the exit code, stdout and stderr."""
    arguments = {'check_dataset': ['--out', 'charts'], 'test': ['none.pth']}.get(name, [])
    # Loggers of two runs within a second would write to the same file.
    options = [f'experiment_name=run_{next(RUNS)}', *options]
    return tool(name, config, *arguments, '--cfg-options', *options)


def assert_refused(tool, config, *tokens, options=(), name='train', before_run=True):
    """Assert that check_dataset.py and another tool report the same error in the data.

    Args:
        tool: The fixture.
        config: Path of a config.
        *tokens: What both must print: the file, the id, the field.
        options: Overrides of the config.
        name: The other tool.
        before_run: Whether it must stop before it writes anything.
    """
    code, out, error = run(tool, 'check_dataset', config, *options)
    assert code == 1, out + error
    assert_contains(out, *tokens)
    code, _, error = run(tool, name, config, *options)
    assert code == 2, error
    assert_contains(error, f'{name}.py: ', *tokens)
    assert not (before_run and Path('work_dirs').exists())


def assert_trains(tool, config, *options, metrics):
    """Assert that there are only warnings, and that training and validation have results."""
    code, out, error = run(tool, 'check_dataset', config, *TINY, *options)
    assert code == 0, out + error
    assert 'ERROR' not in out and '\x1b' not in out
    code, out, error = run(tool, 'train', config, *TINY, *options)
    assert code == 0, out[-3000:] + error[-3000:]
    for metric in metrics:
        assert re.search(rf'Iter\(val\).* {metric}: +\d', out), out[-3000:]
    return out


def assert_contains(text, *tokens):
    """Assert that a text contains all tokens and no traceback."""
    assert 'Traceback' not in text
    assert [token for token in tokens if token not in text] == [], text
