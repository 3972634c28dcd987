"""tools/check_dataset.py says what is wrong, and by its exit code how bad it is."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from mmfocalnet.datasets import make_shapes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(shapes, tmp_path, monkeypatch):
    """The sample set where the demos expect it, to be damaged."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(shapes, tmp_path / 'data/shapes')


@pytest.fixture
def check(data, tool):
    """Run the tool in this process; returns the exit code, stdout and stderr."""

    def _check(config, *flags):
        path = config if config.endswith('.py') else ROOT / f'configs/demo/{config}.py'
        return tool('check_dataset', path, *flags)

    return _check


def annotations(data, split='train'):
    return data / f'coco/annotations/instances_{split}2017.json'


def change(path, **lists):
    content = json.loads(path.read_text())
    for part, fields in lists.items():
        content[part][0].update(fields)
    path.write_text(json.dumps(content))


def test_a_clean_set(run, data, tmp_path):
    out = run(
        sys.executable, ROOT / 'tools/check_dataset.py', ROOT / 'configs/demo/mask_rcnn.py',
        cwd=tmp_path,
    ).stdout  # fmt: skip
    assert '6/6' in out  # of the progress bar
    assert 'CocoDataset data/shapes/coco/annotations/instances_train2017.json, 6 images' in out
    assert 'train: errors: 0, ' in out and 'val: errors: 0, ' in out
    assert 'test:' not in out  # the same as val
    number = len(json.loads(annotations(data).read_text())['annotations'])
    table = out.split('class ')[1].split('As a chart')[0].splitlines()[1:]
    assert [row.split()[0] for row in table] == ['circle', 'square', 'triangle', 'star']
    assert sum(int(row.split()[1]) for row in table) == number
    for split in ('train', 'val'):
        Image.open(tmp_path / f'work_dirs/check_dataset/mask_rcnn/{split}.png').verify()


@pytest.mark.parametrize(
    ('config', 'metrics'), [('mask2former', ['val_metric_1.png']), ('upernet', [])]
)
def test_clean_sets_of_other_labels(check, config, metrics):
    code, out, _ = check(config, '--out', 'here')
    assert code == 0
    assert 'ERROR' not in out
    charts = {'train.png', 'val.png', *metrics}
    assert {path.name for path in Path('here').iterdir()} == charts


def test_errors_end_with_1(check, data):
    change(annotations(data), annotations={'segmentation': [[1, 2, 3, 4, 5, 1e9]]})
    code, out, _ = check('mask_rcnn', '--split', 'train')
    assert code == 1
    assert 'ERROR: polygons that cannot be drawn: 1\n' in out
    id_ = json.loads(annotations(data).read_text())['annotations'][0]['id']
    path = 'data/shapes/coco/annotations/instances_train2017.json'
    assert f'    {path}: annotations[0] (id {id_}) in data/shapes/coco/train2017/' in out
    assert 'train: errors: 1, ' in out
    assert 'val:' not in out
    assert check('mask_rcnn', '--split', 'val')[0] == 0


def test_warnings_end_with_0(check, data):
    change(annotations(data), annotations={'bbox': [70, 0, 9, 9]})
    code, out, _ = check('mask_rcnn', '--split', 'train')
    assert code == 0
    assert 'warning: boxes outside their image: 1\n' in out


def test_each_of_concatenated_datasets(check, data, tmp_path):
    (data / 'coco/val2017/000000100001.jpg').write_bytes(b'text')
    (tmp_path / 'both.py').write_text(
        f"_base_ = '{ROOT}/configs/demo/mask_rcnn.py'\n"
        'one, two = _base_.train_dataloader.dataset, _base_.val_dataloader.dataset\n'
        "train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=2,\n"
        "    dataset=dict(type='ConcatDataset', datasets=[one, two])))\n"
    )
    code, out, _ = check('both.py', '--out', 'charts')
    assert code == 1
    assert 'train_1: errors: 0' in out and 'train_2: errors: 1' in out
    assert 'data/shapes/coco/val2017/000000100001.jpg (image 100001) is damaged' in out
    assert sorted(path.name for path in Path('charts').iterdir()) == [
        'train_1.png', 'train_2.png', 'val.png',
    ]  # fmt: skip


def test_heads_of_another_number_of_classes(check):
    code, out, _ = check('mask_rcnn', '--cfg-options', 'model.roi_head.bbox_head.num_classes=80')
    assert code == 1
    assert 'ERROR: classes that do not fit: 1' in out
    assert 'model.roi_head.bbox_head.num_classes is 80, but the dataset has 4 classes' in out


@pytest.mark.parametrize(
    ('config', 'flags', 'sentence'),
    [
        ('none.py', [], "There is no config file 'none.py'"),
        (
            'mask_rcnn',
            ['--cfg-options', 'train_dataloader.dataset.pipeline.9.a=1'],
            '--cfg-options',
        ),
        (
            'mask_rcnn',
            ['--cfg-options', 'train_dataloader.dataset.ann_file=none.json'],
            'data/shapes/coco/none.json is missing (train_dataloader of ',
        ),
        ('mask_rcnn', ['--cfg-options', 'val_dataloader=None', '--split', 'val'], 'no val_data'),
        ('mask_rcnn', ['--out', 'file'], '--out file cannot be used'),
        (
            'mask_rcnn',
            ['--cfg-options', 'train_dataloader.dataset.type=LVISV9Dataset'],
            'LVISV9Dataset is a dataset that cannot be checked',
        ),
        ('empty.py', [], 'empty.py has no datasets'),
    ],
)
def test_mistakes_end_with_2(check, tmp_path, config, flags, sentence):
    (tmp_path / 'file').touch()
    (tmp_path / 'empty.py').touch()
    code, _, error = check(config, *flags)
    assert code == 2
    assert error.startswith('check_dataset.py: ') and sentence in error
    assert error.count('\n') == 1


def test_invalid_json_is_an_error_and_the_other_splits_are_checked(check, data):
    path = annotations(data)
    path.write_text(path.read_text()[:-9])
    code, out, _ = check('mask_rcnn')
    assert code == 1
    assert 'ERROR: data/shapes/coco/annotations/instances_train2017.json is no valid JSON' in out
    assert 'val: errors: 0' in out


@pytest.mark.slow
def test_ctrl_c(tmp_path):
    make_shapes(tmp_path / 'data/shapes', 1, 1, size=64)
    path = annotations(tmp_path / 'data/shapes')
    content = json.loads(path.read_text())
    # As many images as take seconds.
    content['images'] = [dict(content['images'][0], id=number) for number in range(30_000)]
    path.write_text(json.dumps(content))
    process = subprocess.Popen(
        [sys.executable, ROOT / 'tools/check_dataset.py', ROOT / 'configs/demo/mask_rcnn.py'],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, 'PYTHONUNBUFFERED': '1'},
        # Where the tests run in the background it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while process.stdout.read(1) != '[':  # of the progress bar
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines()[-1] == 'check_dataset.py: interrupted'
    assert 'Traceback' not in error
