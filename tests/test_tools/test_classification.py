"""A classifier trains, resumes and is tested; its checkpoints load into detectors."""

import re

import forked_tools
import pytest
import torch
from forked_tools import ROOT

from mmfocalnet.datasets import make_shape_crops

CONFIG = ROOT / 'configs/demo/classification.py'
TINY = [
    'model.backbone.embed_dim=8',
    'train_dataloader.batch_size=4',
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'default_hooks.checkpoint.interval=2',
    'default_hooks.logger.interval=1',
]


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
    """A checkpoint of the tiny classifier, and its accuracy on the validation images."""
    home = tmp_path_factory.mktemp('pretrained')
    (home / 'data').mkdir()
    (home / 'data/shapes_crops').symlink_to(crops)
    config = home / 'with_ema.py'
    config.write_text(f"_base_ = {str(CONFIG)!r}\ncustom_hooks = [dict(type='EMAHook')]\n")
    result = forked_tools.run('train', config, '--amp', *options(home), folder=home, cwd=home)
    return home / 'work/iter_2.pth', accuracy(result)


def accuracy(result):
    """The last one: a resumed run begins with the validation that its checkpoint lacks."""
    return re.findall(r'accuracy/top1: +([\d.]+)', result.stdout)[-1]


def test_trained_resumed_and_tested(forked_tool, home, pretrained):
    checkpoint, _ = pretrained
    more = options(home, 'train_cfg.max_iters=3')
    resumed = forked_tool('train', CONFIG, '--resume', checkpoint, *more, cwd=home)
    assert re.search(r'resumed .*iter: 2', resumed.stdout)
    assert 'Iter(train) [3/3]' in resumed.stdout
    tested = forked_tool(
        'test', CONFIG, home / 'work/iter_3.pth', '--out', home / 'predictions.pkl',
        '--show-dir', home / 'drawn', *options(home), cwd=home,
    )  # fmt: skip
    assert accuracy(tested) == accuracy(resumed)
    assert (home / 'predictions.pkl').is_file()
    images = list((home / 'data/shapes_crops/val').glob('*/*.jpg'))
    assert len(list((home / 'drawn').rglob('*.png'))) == len(images)


@pytest.mark.e2e
def test_two_processes(run, home):
    env = {'PORT': forked_tools.free_port()}
    out = run(ROOT / 'tools/dist_train.sh', CONFIG, 2, *options(home), cwd=home, env=env).stdout
    assert out.count('Saving checkpoint at 2 iterations') == 1
    assert re.search(r'Iter\(val\).* accuracy/top1: +\d', out)


def test_its_checkpoint_initializes_a_detector(forked_tool, home, pretrained, tiny_options):
    checkpoint, _ = pretrained
    result = forked_tool(
        'train', ROOT / 'configs/demo/mask_rcnn.py', '--work-dir', home / 'detector',
        '--cfg-options', *tiny_options, 'model.backbone.init_cfg.type=Pretrained',
        f'model.backbone.init_cfg.checkpoint={checkpoint}', cwd=home,
    )  # fmt: skip
    assert re.search(r"Loaded .*iter_2.pth .*'backbone.'", result.stdout)
    assert 'coco/bbox_mAP_50' in result.stdout


def test_a_checkpoint_with_released_names_is_tested(forked_tool, home, pretrained):
    checkpoint, expected = pretrained
    state = torch.load(checkpoint, weights_only=False)['state_dict']
    names = {key: re.sub(r'^norm3\.', 'norm.', key.removeprefix('backbone.')) for key in state}
    release = home / 'release.pth'
    torch.save({'model': {names[key]: value for key, value in state.items()}}, release)
    assert accuracy(forked_tool('test', CONFIG, release, *options(home), cwd=home)) == expected


def test_fine_tuning_loads_the_complete_classifier(forked_tool, home, pretrained):
    checkpoint, _ = pretrained
    config = home / 'fine_tune.py'
    init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint))
    config.write_text(f'_base_ = {str(CONFIG)!r}\nmodel = dict(init_cfg={init_cfg})\n')
    out = forked_tool('train', config, *options(home), cwd=home).stdout
    assert re.search(r'Loaded .*linear layer', out)
    wider = options(home, 'model.backbone.embed_dim=16')
    wrong = forked_tool('test', CONFIG, checkpoint, *wider, cwd=home, code=2)
    assert str(checkpoint) in wrong.stderr


@pytest.mark.parametrize(
    ('option', 'token'),
    [
        ('train_dataloader.dataset.data_root=data/none', 'data/none/train'),
        ('val_evaluator.topk=(1,5)', 'topk=(1, 5)'),
    ],
)
def test_mistakes_end_with_2(tool, home, monkeypatch, option, token):
    monkeypatch.chdir(home)
    code, _, error = tool('train', CONFIG, *options(home, option))
    assert code == 2
    assert token in error and 'Traceback' not in error
    assert not (home / 'work').exists()


def test_the_imagenet_recipe_trains(forked_tool, home, crops):
    """The published augmentation, mixing and schedule, on a few images."""
    out = forked_tool(
        'train', ROOT / 'configs/imagenet/focalnet_t.py', '--work-dir', home / 'work',
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
    assert code == 2 and 'size' in error
