"""tools/report.py on finished, unfinished, resumed and damaged runs."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from PIL import Image

from mmfocalnet.errors import UserError
from mmfocalnet.visualization.curves import draw_curves, draw_panel
from mmfocalnet.visualization.gallery import make_gallery
from mmfocalnet.visualization.image_scores import box_quality, mean_iou
from mmfocalnet.visualization.report import write_report
from mmfocalnet.visualization.training_log import loss_terms, metrics, read_history

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = """2026/01/01 00:00:00 - mmengine - INFO -
------------------------------------------------------------
System environment:
    PyTorch: 9.8.7+elsewhere
    GPU 0,1: Imaginary Accelerator
    MMEngine: 0.10.12

Runtime environment:
    seed: 7
    GPU number: 2
------------------------------------------------------------
"""


def training(step, loss=1.0, **more):
    return {'lr': 0.1, 'loss': loss, 'loss_cls': loss, 'time': 0.5, 'data_time': 0.1,
            'iter': step, 'step': step, **more}  # fmt: skip


def validation(step, value):
    return {'coco/bbox_mAP': value, 'coco/bbox_mAP_l': -1.0, 'time': 0.1, 'step': step}


@pytest.fixture
def write_run(tmp_path):
    """Write the files of one run of MMEngine into a work dir."""

    def _write(name, entries=(), log=None, config='model = dict()\n', end=''):
        folder = tmp_path / 'work' / name
        (folder / 'vis_data').mkdir(parents=True)
        lines = ''.join(json.dumps(entry) + '\n' for entry in entries) + end
        if lines:
            (folder / 'vis_data/scalars.json').write_text(lines)
        (folder / 'vis_data/config.py').write_text(config)
        if log is not None:
            (folder / f'{name}.log').write_text(log)
        return folder.parent

    return _write


@pytest.fixture
def report(tmp_path):
    def _report(work_dir, images=0):
        out = tmp_path / 'report.html'
        missing = write_report(work_dir, out, images)
        return out.read_text(), missing.yet + missing.skipped

    return _report


def test_resumed_run_is_joined(write_run, report):
    first = [training(step, loss=1) for step in (10, 20, 30, 40)]
    write_run('1', [*first, validation(20, 0.1), validation(40, 0.9)], log='')
    log = 'resumed epoch: 0, iter: 20\n'
    work_dir = write_run(
        '2', [training(30, loss=2), training(45, loss=2), validation(45, 0.2)], log
    )
    history = read_history(work_dir)
    assert [(e['step'], e['loss']) for e in history.training] == [
        (10, 1), (20, 1), (30, 2), (45, 2),
    ]  # fmt: skip
    assert metrics(history.validation) == {'coco/bbox_mAP': ([20, 45], [10, 20])}
    assert [run.name for run in history.runs] == ['1', '2']
    assert [past.iteration for past in history.resumed] == [20]
    assert 'after iteration 20' in report(work_dir)[0]


def test_resumed_run_of_epochs_is_joined(write_run):
    write_run('1', [training(5, epoch=1), validation(1, 0.1), training(10, epoch=2)])
    later = [training(8, epoch=2), validation(2, 0.3), training(15, epoch=3)]
    work_dir = write_run('2', later)
    history = read_history(work_dir)
    assert [entry['step'] for entry in history.training] == [5, 8, 15]
    assert [entry['step'] for entry in history.validation] == [1, 2]
    assert history.by_epoch
    assert (history.resumed[0].iteration, history.resumed[0].epoch) == (7, 1)


def test_run_from_scratch_replaces_older_runs(write_run, report):
    write_run('1', [training(10), training(400)], log='')
    work_dir = write_run('2', [training(20)], log='')
    html, notes = report(work_dir)
    assert [entry['step'] for entry in read_history(work_dir).training] == [20]
    assert any('scratch: 1.' in note for note in notes)
    assert 'Resumed' not in html


def test_curves_of_the_demo_are_written(write_run, tmp_path):
    work_dir = write_run('1', [training(10), training(20, 0.5), validation(20, 0.3)])
    draw_curves(read_history(work_dir), {'coco/bbox_mAP': 'AP'}, tmp_path / 'curves.png')
    assert np.asarray(Image.open(tmp_path / 'curves.png').convert('L')).std() > 10


def test_later_test_run_is_ignored(write_run):
    write_run('1', [training(10)])
    work_dir = write_run('2', log=ENVIRONMENT)
    assert [run.name for run in read_history(work_dir).runs] == ['1']


def test_unfinished_run(write_run, report):
    config = "train_cfg = dict(type='IterBasedTrainLoop', max_iters=50)\n"
    work_dir = write_run('1', [training(10)], log='', config=config, end='{"lr": 0.1, "lo')
    html, notes = report(work_dir, images=2)
    assert 'logged up to iteration 10 of 50' in html
    assert any('no validation' in note for note in notes)
    assert any('1 unreadable line' in note for note in notes)
    assert any('No gallery' in note for note in notes)
    assert html.count('<svg') == 4  # loss, terms, rate, speed


def test_run_without_log(write_run, report):
    html, notes = report(write_run('1'))
    assert 'Nothing has been logged' in html
    assert '<svg' not in html
    assert any('no log' in note for note in notes)


def test_environment_is_that_of_the_run(write_run, report):
    config = 'train_dataloader = dict(batch_size=3)\n'
    work_dir = write_run('1', [training(10, memory=2048)], log=ENVIRONMENT, config=config)
    html, notes = report(work_dir)
    assert 'Imaginary Accelerator' in html
    assert '9.8.7+elsewhere' in html
    assert torch.__version__ not in html
    assert 'at most 2,048 MiB on a GPU' in html
    assert '20.0% of it waiting for data' in html
    assert any('no validation' in note for note in notes)


def test_memory_is_reported_as_missing_on_the_cpu(write_run, report):
    log = ENVIRONMENT.replace('    GPU 0,1: Imaginary Accelerator\n', '')
    html, _ = report(write_run('1', [training(10)], log=log))
    assert 'not logged on the CPU' in html


def test_nan_loss_is_reported(write_run, report):
    work_dir = write_run('1', [training(10), training(20, loss=float('nan'))])
    assert any('NaN' in note and 'iteration 20' in note for note in report(work_dir)[1])


def test_values_are_escaped_and_nothing_is_downloaded(write_run, report):
    config = "text = '</pre><script>alert(1)</script>'\n"
    entries = [training(10), {'<b>$odd_{metric</b>': 3.0, 'step': 10}]
    html, _ = report(write_run('1', entries, log=ENVIRONMENT + '<i>', config=config))
    assert '<script' not in html
    assert '<b>$odd' not in html
    assert '&lt;script&gt;' in html
    assert not re.search(r'(src|href)\s*=\s*(?!"#|"data:)', html)
    assert '@import' not in html
    assert not re.search(r'url\((?!#)', html)


def test_loss_terms_of_many_layers_share_colours():
    entry = {'step': 1, 'loss': 9.0, 'acc': 1.0}
    entry |= {f'd{layer}.loss_{kind}': 1.0 for layer in range(9) for kind in ('cls', 'mask')}
    terms = loss_terms([entry])
    assert len(terms) == 18
    svg = draw_panel(terms, 'Terms', 'Iteration')
    assert set(re.findall(r'stroke: (#\w+)', svg)) >= {'#1f77b4', '#ff7f0e'}
    assert '#2ca02c' not in svg


def test_box_quality():
    def boxes(*rows, **more):
        return InstanceData(
            bboxes=torch.tensor(rows, dtype=torch.float).reshape(-1, 4),
            labels=torch.zeros(len(rows), dtype=torch.long),
            **more,
        )

    truth = boxes((0, 0, 10, 10), (20, 20, 30, 30))
    exact = boxes((20, 20, 30, 30), (0, 0, 10, 10), scores=torch.tensor([0.6, 0.9]))
    assert box_quality(truth, exact) == pytest.approx(1)
    # One of IoU 0.8, a second one on the same truth, one on nothing.
    poor = boxes(
        (0, 0, 10, 8), (0, 0, 10, 7), (50, 50, 60, 60), scores=torch.tensor([0.9, 0.8, 0.7])
    )
    assert box_quality(truth, poor) == pytest.approx(2 * 0.8 / 5)
    exact.labels += 1
    assert box_quality(truth, exact) == 0
    nothing = boxes(scores=torch.zeros(0))
    assert box_quality(truth, nothing) == 0
    assert box_quality(boxes(), exact) == 0
    assert box_quality(boxes(), nothing) == 1


def test_mean_iou():
    truth = torch.tensor([[[0, 0, 1, 255]]])
    assert mean_iou(truth, truth, 3) == 1
    # Class 0: 1 of 2; class 1: 1 of 1; class 2: 0 of 1; 3 is not a class.
    assert mean_iou(truth, torch.tensor([[[0, 2, 1, 2]]]), 3) == pytest.approx(0.5)
    assert mean_iou(truth, torch.tensor([[[0, 3, 1, 0]]]), 3) == pytest.approx(0.75)
    assert mean_iou(torch.full((1, 1, 2), 255), torch.zeros(1, 1, 2), 3) == 1


def test_folder_of_several_work_dirs_raises(write_run, tmp_path):
    write_run('1', [training(10)])
    with pytest.raises(UserError, match='TIMESTAMP'):
        write_report(tmp_path, tmp_path / 'report.html')
    assert not (tmp_path / 'report.html').exists()


def test_output_that_cannot_be_written_raises(write_run, tmp_path):
    work_dir = write_run('1')
    (tmp_path / 'folder').mkdir()
    os.mkfifo(tmp_path / 'pipe')
    for name in ('missing/report.html', 'folder', 'pipe'):
        with pytest.raises(UserError, match='--out') as caught:
            write_report(work_dir, tmp_path / name, images=0)
        assert name in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['folder', 'pipe', 'work']


def test_link_is_kept(write_run, tmp_path):
    (tmp_path / 'link.html').symlink_to(tmp_path / 'file.html')
    write_report(write_run('1', [training(10)]), tmp_path / 'link.html', images=0)
    assert (tmp_path / 'link.html').is_symlink()
    assert '<svg' in (tmp_path / 'file.html').read_text()


def test_damaged_config_is_replaced_by_another(write_run, report):
    work_dir = write_run('1', [training(10)], config='model = dict(')
    (work_dir / 'mine.py').write_text("model = dict(type='Mine')\n")
    html, notes = report(work_dir)
    assert 'Mine' in html
    assert not any('config' in note for note in notes)


def test_values_other_than_numbers_are_left_out(write_run, report):
    odd = [{'loss': None}, {'loss': 'high'}, {'epoch': 'two'}, {'time': [1]}]
    entries = [{**training(step), **more} for step, more in enumerate(odd, 10)]
    work_dir = write_run('1', [*entries, {**training(20), 'step': True}, [1]], log='')
    html, notes = report(work_dir)
    assert any('2 unreadable line' in note for note in notes)
    assert html.count('<svg') == 4


def test_wrong_paths_exit_with_2(tool, write_run, tmp_path, monkeypatch):
    monkeypatch.chdir(write_run('1', [training(10)]))
    for arguments, token in ((('.', '--out', '.'), '--out .'), ((tmp_path / 'gone',), 'gone')):
        code, _, error = tool('report', *arguments)
        assert code == 2
        assert error.startswith('report.py: ') and token in error and error.count('\n') == 1


@pytest.mark.e2e
def test_from_the_shell(run, write_run):
    work_dir = write_run('1', [training(10)])
    result = run(sys.executable, 'tools/report.py', work_dir, '--images', '0')
    assert result.stdout.endswith(f'{work_dir}/report.html\n')
    assert '<svg' in (work_dir / 'report.html').read_text()


def test_trained_model_is_shown_without_damaged_files(work_dir, tool):
    checkpoint = (work_dir / 'iter_2.pth').read_bytes()
    (work_dir / 'iter_3.pth').write_bytes(checkpoint[: len(checkpoint) // 2])
    code, out, error = tool('report', work_dir, '--images', '2')
    html = (work_dir / 'report.html').read_text()
    assert code == 1
    assert f'{work_dir}/report.html' in out and '\r' not in out  # no progress bar
    assert 'iter_3.pth' in error
    assert '2 of 3 held-out images' in html and 'iter_2.pth' in html
    assert html.count('src="data:image/jpeg;base64,') == 2
    assert 'MaskRCNN on FocalNet' in html
    assert 'coco/bbox_mAP_50' in html
    assert 'System environment' not in html
    assert 'PyTorch compiling details' in html
    assert not list(work_dir.glob('*partial*'))


@pytest.mark.parametrize(('name', 'note'), [('upernet', 'IoU'), ('mask2former', 'Instances')])
def test_label_maps_are_shown(home, monkeypatch, name, note):
    monkeypatch.chdir(home)
    cfg = Config.fromfile(ROOT / f'configs/demo/{name}.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    torch.save({'state_dict': model.state_dict()}, home / 'iter_1.pth')
    gallery = make_gallery(home, cfg, 2)
    assert len(gallery.images) == 2, gallery.skipped
    assert gallery.images[0].score >= gallery.images[1].score >= 0
    assert note in gallery.caption
    assert set(gallery.classes) == set().union(*(image.classes for image in gallery.images))


def test_classifiers_and_missing_files_have_no_gallery(tmp_path):
    classifier = Config(dict(model=dict(type='FocalNetClassifier')))
    assert make_gallery(tmp_path, classifier, 2).missing
    assert make_gallery(tmp_path, None, 2).skipped
    assert make_gallery(tmp_path, Config(dict(model=dict(type='MaskRCNN'))), 2).skipped


def test_damaged_and_missing_images_are_left_out(work_dir, tool, report, shapes, tmp_path):
    config = next(work_dir.glob('*/vis_data/config.py'))
    shutil.copytree(shapes, tmp_path / 'shapes')
    config.write_text(config.read_text().replace(str(shapes), f'{tmp_path}/shapes'))
    damaged = min(tmp_path.glob('shapes/coco/val2017/*.jpg'))
    damaged.write_text('text')
    code, _, error = tool('report', work_dir)
    html = (work_dir / 'report.html').read_text()
    assert code == 1
    assert error.count('\n') == 1 and str(damaged) in error
    assert '2 of 3 held-out images' in html
    assert html.count('src="data:image/jpeg;base64,') == 2

    config.write_text(re.sub(r"'[^']*coco/", "'gone/", config.read_text()))
    html, [message] = report(work_dir, images=2)
    assert 'data:image' not in html and '<svg' in html
    assert 'gone/' in message
