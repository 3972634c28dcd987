"""A classifier trains, evaluates, saves, resumes and tests, and its weights start a detector."""

import re
import shutil
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


def test_trains_evaluates_saves_resumes_and_tests(run, home):
    config = home / 'with_ema.py'
    config.write_text(f"_base_ = {str(CONFIG)!r}\ncustom_hooks = [dict(type='EMAHook')]\n")
    first = run(*TRAIN, config, '--amp', *options(home), cwd=home).stdout
    assert re.search(r'Iter\(val\).* accuracy/top1: +\d', first)
    more = 'train_cfg.max_iters=3'
    resumed = run(*TRAIN, config, '--resume', *options(home, more), cwd=home).stdout
    assert re.search(r'resumed .*iter: 2', resumed)
    assert 'Iter(train) [3/3]' in resumed

    out = run(
        *TEST, CONFIG, home / 'work/iter_3.pth', '--out', home / 'predictions.pkl',
        '--show-dir', home / 'drawn', *options(home), cwd=home,
    ).stdout  # fmt: skip
    assert re.search(r'Iter\(test\).* accuracy/top1: +\d', out)
    assert (home / 'predictions.pkl').is_file()
    held_out = list((home / 'data/shapes_crops/val').glob('*/*.jpg'))
    assert len(list((home / 'drawn').rglob('*.png'))) == len(held_out)


def test_two_processes(run, home):
    out = run(
        ROOT / 'tools/dist_train.sh', CONFIG, 2, *options(home), cwd=home, env={'PORT': '29641'}
    ).stdout
    assert out.count('Saving checkpoint at 2 iterations') == 1
    assert re.search(r'Iter\(val\).* accuracy/top1: +\d', out)


@pytest.fixture
def pretrained(run, home):
    run(*TRAIN, CONFIG, *options(home), cwd=home)
    return home / 'work/iter_2.pth'


def test_its_checkpoint_starts_a_detector(run, home, pretrained, tiny_options):
    out = run(
        *TRAIN, ROOT / 'configs/demo/mask_rcnn.py', '--work-dir', home / 'detector',
        '--cfg-options', *tiny_options, 'model.backbone.init_cfg.type=Pretrained',
        f'model.backbone.init_cfg.checkpoint={pretrained}', cwd=home,
    ).stdout  # fmt: skip
    assert re.search(r"Loaded .*iter_2.pth .*keys below 'backbone.'", out)
    assert 'coco/bbox_mAP_50' in out


def test_a_released_checkpoint_is_tested_as_it_is(run, home, pretrained):
    state = torch.load(pretrained, weights_only=False)['state_dict']
    names = {key: re.sub(r'^norm3\.', 'norm.', key.removeprefix('backbone.')) for key in state}
    release = home / 'release.pth'
    torch.save({'model': {names[key]: value for key, value in state.items()}}, release)
    figures = [
        re.search(
            r'accuracy/top1: +([\d.]+)', run(*TEST, CONFIG, path, *options(home), cwd=home).stdout
        )
        for path in (pretrained, release)
    ]
    assert figures[0][1] == figures[1][1]
    wrong = run(
        *TEST, CONFIG, release, *options(home, 'model.backbone.embed_dim=16'), cwd=home, code=2
    )
    assert 'is not a checkpoint of this config' in wrong.stderr


def test_fine_tuning_goes_on_from_the_whole_classifier(run, home, pretrained):
    init_cfg = ['model.init_cfg.type=Pretrained', f'model.init_cfg.checkpoint={pretrained}']
    out = run(*TRAIN, CONFIG, *options(home, *init_cfg), cwd=home).stdout
    assert 'Loaded its final norm and its linear layer, too.' in out
    seven = (*init_cfg, 'model.num_classes=7')
    shutil.rmtree(home / 'work')
    out = run(*TRAIN, CONFIG, *options(home, *seven), cwd=home, code=2).stderr
    assert 'model.num_classes is 7, but data/shapes_crops/train has 4 classes' in out


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('train_dataloader.dataset.data_root=data/none', r'data/none/train is missing'),
        ('train_dataloader.dataset.data_prefix.img=""', r"has no folder 'circle'|have different"),
        ('model.backbone.out_indices=[2]', r'out_indices is \[2\]: set it to \[3\]'),
        ('model.num_classes=1000', 'data/shapes_crops/train has 4 classes'),
        ('val_evaluator.topk=(1,5)', 'needs 5 classes, but the model has 4'),
    ],
)
def test_mistakes_end_in_one_sentence(run, home, option, message):
    result = run(*TRAIN, CONFIG, *options(home, option), cwd=home, code=2)
    assert re.search(message, result.stderr)
    assert 'Traceback' not in result.stderr
    if not option.startswith(('val', 'train_dataloader.dataset.data_prefix')):
        assert not (home / 'work').exists()


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


def test_make_shapes_crops(run, tmp_path):
    out = run(
        sys.executable, ROOT / 'tools/make_shapes.py', '--crops', '--train', 1, '--val', 1,
        cwd=tmp_path,
    ).stdout  # fmt: skip
    assert '"num_train": 1' in out
    assert (tmp_path / 'data/shapes_crops/train/circle').is_dir()
