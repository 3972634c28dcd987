"""tools/check_dataset.py: its output, charts and exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmfocalnet.datasets import make_shapes
from mmfocalnet.datasets.inspection.chart import draw_counts
from mmfocalnet.datasets.inspection.findings import ClassCounts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(shapes, tmp_path, monkeypatch):
    """A copy of the sample dataset to damage, where the demos expect it."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(shapes, tmp_path / 'data/shapes')


@pytest.fixture
def check(data, tool):
    """Run the tool in this process; returns the exit code, stdout and stderr."""

    def _check(config, *flags):
        path = config if config.endswith('.py') else ROOT / f'configs/demo/{config}.py'
        return tool('check_dataset', path, *flags)

    return _check


def annotations(data):
    return data / 'coco/annotations/instances_train2017.json'


def test_a_clean_set(check, data):
    code, out, _ = check('mask_rcnn')
    assert code == 0
    assert 'data/shapes/coco/annotations/instances_train2017.json, 6 images' in out
    assert 'train: errors: 0, ' in out and 'val: errors: 0, ' in out
    assert 'test:' not in out  # the same as val
    number = len(json.loads(annotations(data).read_text())['annotations'])
    table = out.split('class ')[1].split('Chart')[0].splitlines()[1:]
    assert [row.split()[0] for row in table] == ['circle', 'square', 'triangle', 'star']
    assert sum(int(row.split()[1]) for row in table) == number
    for split in ('train', 'val'):
        Image.open(f'work_dirs/check_dataset/mask_rcnn/{split}.png').verify()


@pytest.mark.parametrize(
    ('config', 'metrics'), [('mask2former', ['val_metric_1.png']), ('upernet', [])]
)
def test_clean_sets_of_other_labels(check, config, metrics):
    code, out, _ = check(config, '--out', 'here')
    assert code == 0
    assert 'ERROR' not in out
    assert {path.name for path in Path('here').iterdir()} == {'train.png', 'val.png', *metrics}


@pytest.mark.parametrize(
    ('fields', 'code', 'heading'),
    [
        ({'segmentation': [[1, 2, 3, 4, 5, 1e9]]}, 1, 'ERROR: polygons'),
        ({'bbox': [70, 0, 9, 9]}, 0, 'warning: boxes'),
    ],
)
def test_errors_and_warnings(check, data, fields, code, heading):
    content = json.loads(annotations(data).read_text())
    content['annotations'][0].update(fields)
    annotations(data).write_text(json.dumps(content))
    found, out, _ = check('mask_rcnn', '--split', 'train', 'val')
    assert found == code
    assert heading in out
    id_ = content['annotations'][0]['id']
    assert f'instances_train2017.json: annotations[0] (id {id_}) in data/shapes/coco/' in out
    assert f'train: errors: {code}, ' in out and 'val: errors: 0' in out


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
    assert 'data/shapes/coco/val2017/000000100001.jpg (image 100001)' in out
    charts = {path.name for path in Path('charts').iterdir()}
    assert charts == {'train_1.png', 'train_2.png', 'val.png'}


def test_heads_of_another_number_of_classes(check):
    code, out, _ = check('mask_rcnn', '--cfg-options', 'model.roi_head.bbox_head.num_classes=80')
    assert code == 1
    assert 'model.roi_head.bbox_head.num_classes is 80' in out


def test_invalid_json_does_not_stop_other_splits(check, data):
    annotations(data).write_text(annotations(data).read_text()[:-9])
    code, out, _ = check('mask_rcnn')
    assert code == 1
    assert 'ERROR: data/shapes/coco/annotations/instances_train2017.json' in out
    assert 'val: errors: 0' in out


@pytest.mark.parametrize(
    ('config', 'flags', 'token'),
    [
        ('none.py', [], "'none.py'"),
        (
            'mask_rcnn',
            ['--cfg-options', 'train_dataloader.dataset.pipeline.9.a=1'],
            '--cfg-options',
        ),
        (
            'mask_rcnn',
            ['--cfg-options', 'train_dataloader.dataset.ann_file=none.json'],
            'data/shapes/coco/none.json',
        ),
        ('mask_rcnn', ['--cfg-options', 'val_dataloader=None', '--split', 'val'], 'val_dataloader'),
        ('mask_rcnn', ['--out', 'file'], '--out file'),
        (
            'mask_rcnn',
            ['--cfg-options', 'train_dataloader.dataset.type=LVISV9Dataset'],
            'LVISV9Dataset',
        ),
        ('empty.py', [], 'empty.py'),
    ],
)
def test_mistakes_end_with_2(check, tmp_path, config, flags, token):
    (tmp_path / 'file').touch()
    (tmp_path / 'empty.py').touch()
    code, _, error = check(config, *flags)
    assert code == 2
    assert error.startswith('check_dataset.py: ') and token in error
    assert error.count('\n') == 1


def test_a_chart_of_rare_classes(tmp_path):
    counts = ClassCounts(('a_$x', 'b', 'c'), 'pixels')
    counts.numbers[:] = (10**9, 3, 0)
    draw_counts(counts, 'title with $', tmp_path / 'chart.png')
    chart = np.array(Image.open(tmp_path / 'chart.png').convert('RGB')).astype(int)
    blue = (chart[..., 2] - chart[..., 0] > 60).any(axis=1)
    # Two bars can be seen: that of 3 as well, on an axis with a logarithmic scale.
    assert np.diff(blue, prepend=False, append=False).sum() == 4


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
        # Background processes may ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while 'reading' not in process.stdout.readline():
        pass
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines()[-1] == 'check_dataset.py: interrupted'
    assert 'Traceback' not in error
