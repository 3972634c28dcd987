"""Validations that do not measure the metric that a run depends on."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from toy_training import ToyMetric, toy_config

from mmfocalnet.cli.initial_checkpoint import load_initial_checkpoint
from mmfocalnet.cli.runner import train
from mmfocalnet.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = Config.fromfile(ROOT / 'configs/_base_/default_runtime.py')
AP, IOU = 'coco/bbox_mAP', 'mIoU'
NAN = float('nan')


@pytest.fixture
def measure(monkeypatch):
    """Let each validation give the next of some results; the last one is repeated."""

    def _measure(*results):
        left = list(results)
        monkeypatch.setattr(ToyMetric, 'default_prefix', 'coco')
        monkeypatch.setattr(
            ToyMetric, 'evaluate', lambda self, _: dict(left.pop(0) if left[1:] else left[0])
        )

    return _measure


def config(folder, **settings):
    plateau = dict(type='ReduceOnPlateauLR', monitor=AP, rule='greater', factor=0.1, patience=1)
    hooks = dict(
        param_scheduler=RUNTIME.default_hooks.param_scheduler,
        checkpoint=dict(type='AtomicCheckpointHook', interval=1, save_best=AP, rule='greater'),
    )
    return toy_config(folder, param_scheduler=[plateau], default_hooks=hooks, **settings)


def rate(folder, epoch):
    content = torch.load(folder / f'epoch_{epoch}.pth', weights_only=False)
    return content['optimizer']['param_groups'][0]['lr']


@pytest.mark.parametrize('nothing', [{}, {IOU: 50.0}, {AP: NAN, 'coco/bbox_mAP_50': NAN}])
def test_a_validation_without_metrics_changes_no_schedule(tmp_path, measure, nothing):
    measure(nothing)
    train(config(tmp_path))
    assert rate(tmp_path, 4) == 0.1
    assert not list(tmp_path.glob('best_*'))
    # A resumed run repeats the validation after its checkpoint.
    cfg = config(tmp_path, resume=True)
    cfg.train_cfg.max_epochs = 5
    load_initial_checkpoint(cfg)
    train(cfg)
    assert rate(tmp_path, 5) == 0.1


def test_other_validations_step_the_schedule(tmp_path, measure):
    worse = {AP: 0.1}
    measure({AP: 0.5}, {}, worse, {}, worse, worse)
    cfg = config(tmp_path)
    cfg.train_cfg.max_epochs = 7
    train(cfg)
    assert rate(tmp_path, 5) == 0.1
    assert rate(tmp_path, 6) == pytest.approx(0.01)
    assert [path.name for path in tmp_path.glob('best_*')] == ['best_coco_bbox_mAP_epoch_1.pth']


@pytest.mark.parametrize('name', ['coco/bbox_map', 'bbox_mAP', 'cocoo/bbox_mAP'])
@pytest.mark.parametrize('setting', ['save_best', 'monitor'])
def test_an_unknown_metric_is_an_error(tmp_path, measure, setting, name):
    measure({AP: 0.5, IOU: 50.0})
    cfg = config(tmp_path)
    if setting == 'save_best':
        cfg.default_hooks.checkpoint.save_best = name
    else:
        cfg.param_scheduler[0].monitor = name
    with pytest.raises(ConfigError, match=rf"{setting} of .* '{name}'.*{AP}"):
        train(cfg)


def test_early_stopping_waits_for_the_next_value(tmp_path, measure):
    measure({AP: 0.5}, {}, {IOU: 50.0}, {AP: 0.4})
    stop = dict(type='EarlyStoppingHook', monitor=AP, patience=1, min_delta=0.05)
    cfg = config(tmp_path, custom_hooks=[stop])
    cfg.train_cfg.max_epochs = 6
    train(cfg)
    assert (tmp_path / 'epoch_4.pth').is_file() and not (tmp_path / 'epoch_5.pth').is_file()
