"""A classifier trains, evaluates, saves, resumes and tests, and its weights start a detector."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmfocalnet.datasets import make_shape_crops

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/demo/classification.py'
TINY = [
    'model.backbone.embed_dim=8',
    'train_dataloader.batch_size=4',
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'default_hooks.checkpoint.interval=2',
    'default_hooks.logger.interval=1',
]
TRAIN = (sys.executable, ROOT / 'tools/train.py')
TEST = (sys.executable, ROOT / 'tools/test.py')


@pytest.fixture(scope='session')
def crops(tmp_path_factory):
    return make_shape_crops(tmp_path_factory.mktemp('crops') / 'shapes_crops', 6, 6, size=32)


@pytest.fixture
def home(home, crops):
    (home / 'data/shapes_crops').symlink_to(crops)
    return home


def options(home, *more):
    return ['--work-dir', home / 'work', '--cfg-options', *TINY, *more]


@pytest.fixture(scope='session')
def pretrained(crops, tmp_path_factory):
    """A checkpoint of the tiny classifier, and its accuracy on the held-out pictures."""
    home = tmp_path_factory.mktemp('pretrained')
    (home / 'data').mkdir()
    (home / 'data/shapes_crops').symlink_to(crops)
    config = home / 'with_ema.py'
    config.write_text(f"_base_ = {str(CONFIG)!r}\ncustom_hooks = [dict(type='EMAHook')]\n")
    command = [str(part) for part in (*TRAIN, config, '--amp', *options(home))]
    out = subprocess.run(command, cwd=home, check=True, capture_output=True, text=True).stdout
    return home / 'work/iter_2.pth', accuracy(out)


def accuracy(out):
    return re.search(r'accuracy/top1: +([\d.]+)', out)[1]


def test_trained_resumed_and_tested(run, home, pretrained):
    checkpoint, _ = pretrained
    more = options(home, 'train_cfg.max_iters=3')
    resumed = run(*TRAIN, CONFIG, '--resume', checkpoint, *more, cwd=home).stdout
    assert re.search(r'resumed .*iter: 2', resumed)
    assert 'Iter(train) [3/3]' in resumed
    out = run(
        *TEST, CONFIG, home / 'work/iter_3.pth', '--out', home / 'predictions.pkl',
        '--show-dir', home / 'drawn', *options(home), cwd=home,
    ).stdout  # fmt: skip
    assert accuracy(out) == accuracy(resumed)
    assert (home / 'predictions.pkl').is_file()
    held_out = list((home / 'data/shapes_crops/val').glob('*/*.jpg'))
    assert len(list((home / 'drawn').rglob('*.png'))) == len(held_out)


@pytest.mark.slow
def test_two_processes(run, home):
    out = run(
        ROOT / 'tools/dist_train.sh', CONFIG, 2, *options(home), cwd=home, env={'PORT': '29641'}
    ).stdout
    assert out.count('Saving checkpoint at 2 iterations') == 1
    assert re.search(r'Iter\(val\).* accuracy/top1: +\d', out)


def test_its_checkpoint_starts_a_detector(run, home, pretrained, tiny_options):
    checkpoint, _ = pretrained
    out = run(
        *TRAIN, ROOT / 'configs/demo/mask_rcnn.py', '--work-dir', home / 'detector',
        '--cfg-options', *tiny_options, 'model.backbone.init_cfg.type=Pretrained',
        f'model.backbone.init_cfg.checkpoint={checkpoint}', cwd=home,
    ).stdout  # fmt: skip
    assert re.search(r"Loaded .*iter_2.pth .*keys below 'backbone.'", out)
    assert 'coco/bbox_mAP_50' in out


def test_a_released_checkpoint_is_tested_as_it_is(run, home, pretrained):
    checkpoint, reached = pretrained
    state = torch.load(checkpoint, weights_only=False)['state_dict']
    names = {key: re.sub(r'^norm3\.', 'norm.', key.removeprefix('backbone.')) for key in state}
    release = home / 'release.pth'
    torch.save({'model': {names[key]: value for key, value in state.items()}}, release)
    assert accuracy(run(*TEST, CONFIG, release, *options(home), cwd=home).stdout) == reached


@pytest.mark.slow
def test_fine_tuning_goes_on_from_the_whole_classifier(run, home, pretrained):
    checkpoint, _ = pretrained
    config = home / 'fine_tune.py'
    init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint))
    config.write_text(f'_base_ = {str(CONFIG)!r}\nmodel = dict(init_cfg={init_cfg})\n')
    out = run(*TRAIN, config, *options(home), cwd=home).stdout
    assert 'Loaded its final norm and its linear layer, too.' in out
    wider = options(home, 'model.backbone.embed_dim=16')
    wrong = run(*TEST, CONFIG, checkpoint, *wider, cwd=home, code=2)
    assert 'is not a checkpoint of this config' in wrong.stderr


def test_a_mistake_ends_in_one_sentence(run, home):
    missing = 'train_dataloader.dataset.data_root=data/none'
    result = run(*TRAIN, CONFIG, *options(home, missing), cwd=home, code=2)
    assert 'data/none/train is missing' in result.stderr
    assert 'Traceback' not in result.stderr
    assert not (home / 'work').exists()
    topk = options(home, 'val_evaluator.topk=(1,5)')
    result = run(*TRAIN, CONFIG, *topk, cwd=home, code=2)
    assert 'topk=(1, 5), but the model has 4 classes' in result.stderr
    assert not (home / 'work').exists()


@pytest.mark.slow
def test_imagenet_recipe_runs_on_folders(run, home, crops):
    """The published augmentation, mixing and schedule, on ten pictures."""
    out = run(
        *TRAIN, ROOT / 'configs/imagenet/focalnet_t.py', '--work-dir', home / 'work',
        '--auto-scale-lr', '--cfg-options', f'train_dataloader.dataset.data_root={crops}',
        f'val_dataloader.dataset.data_root={crops}', 'model.num_classes=4',
        'model.backbone.arch=tiny_srf', 'model.backbone.embed_dim=8',
        'model.backbone.depths=[1,1,1,1]', 'val_evaluator.topk=(1,2)',
        'train_dataloader.batch_size=8', 'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False', 'val_dataloader.num_workers=0',
        'val_dataloader.persistent_workers=False', 'train_cfg.max_epochs=1', cwd=home,
    ).stdout  # fmt: skip
    assert re.search(r'accuracy/top1: +\d.* accuracy/top2: +\d', out)
    assert (home / 'work/epoch_1.pth').is_file()


def test_make_shapes_crops(tmp_path, monkeypatch, tool):
    monkeypatch.chdir(tmp_path)
    code, out, _ = tool('make_shapes', '--crops', '--train', 1, '--val', 1)
    assert code == 0 and '"num_train": 1' in out
    assert (tmp_path / 'data/shapes_crops/train/circle').is_dir()
    code, _, error = tool('make_shapes', '--crops', '--size', 8)
    assert code == 2 and 'size must be from 16 to 512' in error
