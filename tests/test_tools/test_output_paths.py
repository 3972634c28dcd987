"""Tools check output paths and ranges of numbers before they start to work."""

import os
from pathlib import Path

import pytest
from PIL import Image

from mmfocalnet.errors import UserError
from mmfocalnet.files import check_file, check_folder, make_folder

CONFIG = Path(__file__).resolve().parents[2] / 'configs/demo/mask_rcnn.py'
LONG = 'x' * 300
# Required arguments and output flag of each tool.
TOOLS = {
    'browse_dataset': ([CONFIG], '--output-dir'),
    'check_dataset': ([CONFIG], '--out'),
    'infer': (['image.png', CONFIG, 'none.pth'], '--out'),
    'make_shapes': ([], '--out'),
    'report': (['work'], '--out'),
    'test': ([CONFIG, 'none.pth'], '--out'),
    'train': ([CONFIG], '--work-dir'),
    'visualize': (['image.png', CONFIG], '--out'),
}


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    Image.new('RGB', (32, 32)).save('image.png')
    Path('work').mkdir()
    return home


@pytest.mark.parametrize('name', TOOLS)
@pytest.mark.parametrize('path', ['image.png/out', f'{LONG}/out', LONG * 20, 'name\udcff/out'])
def test_tools_reject_invalid_output_paths(here, tool, name, path):
    arguments, flag = TOOLS[name]
    before = sorted(here.rglob('*'))
    code, _, error = tool(name, *arguments, flag, f'{path}.pkl' if name == 'test' else path)
    assert code == 2, error
    last = error.strip().splitlines()[-1]
    assert last.startswith(f'{name}.py: {flag} ') and last.isascii()
    assert 'Traceback' not in error
    assert sorted(here.rglob('*')) == before


def test_invalid_folders_are_rejected(here, monkeypatch):
    Path('loop').symlink_to('loop')
    for path in ('image.png', 'loop', 'image.png/in/it', LONG):
        for check in (check_folder, make_folder):
            with pytest.raises(UserError, match=rf'--out {path[:9]}'):
                check('--out', path)
    make_folder('--out', 'new/folder')
    check_folder('--out', 'new/folder')
    monkeypatch.setattr(os, 'access', lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UserError, match=r'--out new/folder'):
        make_folder('--out', 'new/folder')


def test_invalid_files_are_rejected(here):
    for path in ('work', f'work/{LONG}', 'image.png/file'):
        with pytest.raises(UserError, match='--out'):
            check_file('--out', path)
    for path in ('work/new.pkl', 'image.png', 'new/file'):
        check_file('--out', path)


@pytest.mark.parametrize(
    ('name', 'flag'),
    [
        ('infer', '--batch-size'),
        ('browse_dataset', '--number'),
        ('browse_dataset', '--seed'),
        ('report', '--images'),
        ('visualize', '--pretrained-window'),
    ],
)
@pytest.mark.parametrize('value', ['-1', 10**20, '1.5'])
def test_integers_out_of_range_are_rejected(here, tool, name, flag, value):
    code, _, error = tool(name, *TOOLS[name][0], f'{flag}={value}')
    assert code == 2 and flag in error.splitlines()[-1]
