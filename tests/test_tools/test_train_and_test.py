"""The command lines end to end, as a user runs them."""

import pickle
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mmfocalnet import FocalNet

CONFIG = 'configs/demo/mask_rcnn.py'
ROOT = Path(__file__).resolve().parents[2]


def assert_one_sentence(result):
    assert 'Traceback' not in result.stderr
    # Upstream's libraries warn on stderr while they are imported.
    lines = result.stderr.splitlines()
    ours = [line for line in lines if re.match(r'(train|test)\.py: .*\.$', line)]
    assert len(ours) == 1
    assert lines[-1] == ours[0]


@pytest.fixture(scope='session')
def trained(tmp_path_factory, tiny_options):
    """A checkpoint of the tiny model."""
    work_dir = tmp_path_factory.mktemp('trained')
    subprocess.run(
        [sys.executable, 'tools/train.py', CONFIG, '--work-dir', work_dir, '--cfg-options']
        + tiny_options,
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
    )
    return work_dir / 'iter_2.pth'


def test_train_evaluate_save_and_resume(train, tmp_path):
    first = train()
    assert 'coco/bbox_mAP_50' in first.stdout
    assert 'coco/segm_mAP_50' in first.stdout
    assert first.stdout.count('mmcv ops:') == 1
    assert (tmp_path / 'iter_2.pth').is_file()

    resumed = train('--resume', options=['train_cfg.max_iters=3'])
    assert re.search(r'resumed .*iter: 2', resumed.stdout)
    assert 'Iter(train) [3/3]' in resumed.stdout

    from_path = train('--resume', tmp_path / 'iter_3.pth', options=['train_cfg.max_iters=4'])
    assert 'Iter(train) [4/4]' in from_path.stdout


def test_test_with_every_flag(run, trained, tiny_options, tmp_path):
    out = run(
        sys.executable, 'tools/test.py', CONFIG, trained, '--work-dir', tmp_path,
        '--out', tmp_path / 'predictions.pkl', '--show-dir', 'drawn', '--wait-time', '0',
        '--cfg-options', *tiny_options,
    ).stdout  # fmt: skip
    assert 'coco/segm_mAP' in out
    with open(tmp_path / 'predictions.pkl', 'rb') as file:
        assert len(pickle.load(file)) == 3
    assert len(list(tmp_path.glob('*/drawn/*.jpg'))) == 3


def test_test_time_augmentation(run, trained, tiny_options, tmp_path):
    out = run(
        sys.executable, 'tools/test.py', CONFIG, trained, '--work-dir', tmp_path, '--tta',
        '--cfg-options', *tiny_options,
    ).stdout  # fmt: skip
    assert 'coco/bbox_mAP' in out
    assert 'segm_mAP' not in out


def test_two_processes_train_evaluate_and_write_one_checkpoint(run, tiny_options, tmp_path):
    out = run(
        'tools/dist_train.sh', CONFIG, 2, '--work-dir', tmp_path,
        '--cfg-options', *tiny_options, env={'PORT': '29611'},
    ).stdout  # fmt: skip
    assert out.count('Saving checkpoint at 2 iterations') == 1
    assert 'coco/bbox_mAP' in out
    assert [p.name for p in tmp_path.glob('*.pth')] == ['iter_2.pth']
    keys = torch.load(tmp_path / 'iter_2.pth', weights_only=False)['state_dict']
    assert not any(key.startswith('module.') for key in keys)
    out = run(
        'tools/dist_test.sh', CONFIG, tmp_path / 'iter_2.pth', 2, '--work-dir', tmp_path,
        '--cfg-options', *tiny_options, env={'PORT': '29612'},
    ).stdout  # fmt: skip
    assert 'coco/bbox_mAP' in out


def test_mmdets_own_train_tool(run, tiny_options, tmp_path):
    """A config's custom_imports is enough: nothing of ours needs to be imported first."""
    package = Path(find_spec('mmdet').origin).parent
    out = run(
        sys.executable, package / '.mim/tools/train.py', CONFIG, '--work-dir', tmp_path,
        '--cfg-options', *tiny_options,
    ).stdout  # fmt: skip
    assert 'coco/bbox_mAP_50' in out


def test_collect_env(run):
    out = run(sys.executable, 'tools/collect_env.py').stdout
    for name in ('mmfocalnet:', 'Stack:', 'mmcv ops:', 'PyTorch:', 'Devices:', 'Threads:'):
        assert name in out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['train.py', 'configs/none.py'], "no config file 'configs/none.py'"),
        (['train.py', 'README.md'], 'README.md cannot be read as a config'),
        (['train.py', CONFIG, '--cfg-options', 'model.backbone.depths.9.x=1'], 'does not fit'),
        (['train.py', CONFIG, '--resume', 'none.pth'], "no checkpoint file 'none.pth'"),
        (['test.py', CONFIG, 'none.pth'], "no checkpoint file 'none.pth'"),
        (['test.py', CONFIG, 'README.md'], 'README.md .* is truncated'),
        (['test.py', CONFIG, 'none.pth', '--out', 'x.json'], '--out x.json must end in .pkl'),
    ],
)
def test_mistakes_end_in_one_sentence(run, tiny_options, tmp_path, arguments, message):
    tool, *rest = arguments
    if '--cfg-options' not in rest:
        rest += ['--cfg-options', *tiny_options]
    result = run(sys.executable, f'tools/{tool}', *rest, '--work-dir', tmp_path / 'work', code=2)
    assert re.search(message, result.stderr)
    assert_one_sentence(result)
    assert not (tmp_path / 'work').exists()


def test_missing_data_and_offline_checkpoint(run, tiny_options, tmp_path, shapes):
    mask_rcnn = 'configs/mask_rcnn/focalnet_t_1x.py'
    missing = run(
        sys.executable, 'tools/train.py', mask_rcnn, '--work-dir', tmp_path / 'work',
        '--cfg-options', 'train_dataloader.dataset.data_root=data/none/', code=2,
    )  # fmt: skip
    assert 'data/none/annotations/instances_train2017.json is missing' in missing.stderr
    offline = run(
        sys.executable, 'tools/train.py', CONFIG, '--work-dir', tmp_path / 'work',
        '--cfg-options', *tiny_options, 'model.backbone.init_cfg.type=Pretrained',
        'model.backbone.init_cfg.checkpoint=http://127.0.0.1:9/focalnet_tiny_lrf.pth',
        env={'TORCH_HOME': str(tmp_path / 'hub')}, code=2,
    )  # fmt: skip
    assert 'Could not download http://127.0.0.1:9/focalnet_tiny_lrf.pth' in offline.stderr
    for result in (missing, offline):
        assert_one_sentence(result)
    assert not (tmp_path / 'work').exists()
    assert not list((tmp_path / 'hub').rglob('*.pth*'))


def test_usage_of_the_shell_scripts(run):
    for script in ('dist_train.sh', 'dist_test.sh', 'slurm_train.sh'):
        assert 'usage:' in run(f'tools/{script}', code=2).stderr
    assert 'no config file' in run('tools/dist_train.sh', 'none.py', 2, code=2).stderr
    assert "is 'two'" in run('tools/dist_train.sh', CONFIG, 'two', code=2).stderr
    assert "is '0'" in run('tools/dist_test.sh', CONFIG, 'x.pth', 0, code=2).stderr


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('model.backbone.focal_windows=4', 'odd positive number, got 4'),
        ('model.backbone.arch=tiny_lfr', "did you mean 'tiny_lrf'"),
        ('model.backbone.focal_level=2', 'focal_level'),
        ('model.backbone.type=FocalNat', 'FocalNat is not in the'),
        ('model.backbone.init_cfg.type=Xavier', "dict\\(type='Pretrained'"),
        ('train_cfg.max_iter=1', 'max_iter'),
        ('model.neck.in_channels=[96,192,384,768]', r'backbone gives \[8, 16, 32, 64\]'),
        ('model.neck.in_channels=[1,2]', 'set it to .8, 16, 32, 64.'),
        ('model.roi_head.bbox_head.num_classes=3', 'is 3, but the dataset has 4 classes'),
        ('val_dataloader.dataset.metainfo.classes=("cat","dog")', '"cat", "dog"'),
    ],
)
def test_wrong_settings_end_in_one_sentence(run, tiny_options, tmp_path, option, message):
    result = run(
        sys.executable, 'tools/train.py', CONFIG, '--work-dir', tmp_path / 'work',
        '--cfg-options', *tiny_options, option, code=2,
    )  # fmt: skip
    assert re.search(message, result.stderr)
    assert_one_sentence(result)
    if not option.startswith('train_cfg'):
        assert not (tmp_path / 'work').exists()


def test_a_backbone_checkpoint_that_does_not_fit_leaves_nothing(run, tiny_options, tmp_path):
    path = tmp_path / 'wide.pth'
    net = FocalNet(embed_dim=16, depths=[1, 1, 2, 1], focal_windows=3)
    torch.save(net.state_dict(), path)
    arguments = (
        sys.executable, 'tools/train.py', CONFIG, '--work-dir', tmp_path / 'work', '--cfg-options',
        *tiny_options, 'model.backbone.init_cfg.type=Pretrained',
        f'model.backbone.init_cfg.checkpoint={path}',
    )  # fmt: skip
    wide = run(*arguments, code=2)
    assert 'embed_dim is 16 in the checkpoint and 8 in the model' in wide.stderr
    path.write_bytes(path.read_bytes()[:5000])
    short = run(*arguments, code=2)
    assert 'wide.pth (5000 bytes) is truncated' in short.stderr
    for result in (wide, short):
        assert_one_sentence(result)
    assert not (tmp_path / 'work').exists()


def test_testing_needs_no_pretrained_weights_but_the_right_checkpoint(
    run, trained, tiny_options, tmp_path
):
    test = (
        sys.executable, 'tools/test.py', CONFIG, trained, '--work-dir', tmp_path, '--cfg-options',
        *tiny_options,
    )  # fmt: skip
    nowhere = ['type=Pretrained', 'checkpoint=http://127.0.0.1:9/x.pth']
    run(*test, *(f'model.backbone.init_cfg.{part}' for part in nowhere))
    other = run(*test, 'model.neck.out_channels=32', code=2)
    assert re.search(r'is not a checkpoint of this config: \d+ weights', other.stderr)


def test_what_testing_stumbles_over(tool, trained, tiny_options, tmp_path):
    """Met only when the loop is built, and when results are looked at."""
    for option, named in (('metric=foo', 'CocoMetric'), ('metric_items=[foo]', 'evaluator')):
        options = ['--cfg-options', *tiny_options, f'test_evaluator.{option}']
        code, _, error = tool(
            'test', ROOT / 'configs/demo/mask_rcnn.py', trained, '--work-dir', tmp_path, *options
        )
        last = error.strip().splitlines()[-1]
        assert code == 2 and last.startswith('test.py: ') and 'Traceback' not in error, error
        assert named in last and 'foo' in last


def test_resuming_from_a_broken_checkpoint(run, trained, tiny_options, tmp_path):
    resume = (
        sys.executable, 'tools/train.py', CONFIG, '--work-dir', tmp_path, '--resume',
        '--cfg-options', *tiny_options,
    )  # fmt: skip
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_2.pth'))
    gone = run(*resume, code=2)
    assert re.search(r'last_checkpoint names .*iter_2.pth., which is gone', gone.stderr)
    (tmp_path / 'iter_2.pth').write_bytes(trained.read_bytes()[:10000])
    assert 'iter_2.pth (10000 bytes) is truncated' in run(*resume, code=2).stderr


def test_launcher_without_torchrun(run, tiny_options, tmp_path):
    out = run(
        sys.executable, 'tools/train.py', CONFIG, '--work-dir', tmp_path / 'work',
        '--launcher', 'pytorch', '--cfg-options', *tiny_options, code=2,
    )  # fmt: skip
    assert 'tools/dist_train.sh' in out.stderr


def test_work_dir_that_is_a_file_and_config_without_model(run, tiny_options, tmp_path):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'empty.py').write_text('')
    train = (sys.executable, 'tools/train.py')
    assert '--work-dir' in run(*train, CONFIG, '--work-dir', tmp_path / 'file', code=2).stderr
    assert 'has no model' in run(*train, tmp_path / 'empty.py', code=2).stderr
    assert 'KEY=VALUE' in run(*train, CONFIG, '--cfg-options', 'foo', code=2).stderr


def test_no_test_time_augmentation_for_panoptic_models(run, tmp_path):
    config = 'configs/mask2former/focalnet_t_coco_panoptic.py'
    result = run(sys.executable, 'tools/test.py', config, 'x.pth', '--tta', code=2)
    assert f'--tta needs tta_model and tta_pipeline in {config}' in result.stderr
    assert_one_sentence(result)


def test_panoptic_maps_that_are_not_there(run, shapes, tmp_path):
    (tmp_path / 'data').mkdir()
    shutil.copytree(shapes, tmp_path / 'data/shapes')
    maps = tmp_path / 'data/shapes/coco/annotations/panoptic_train2017'
    train = (sys.executable, ROOT / 'tools/train.py', ROOT / 'configs/demo/mask2former.py')
    for path in maps.iterdir():
        path.unlink()
    empty = run(*train, cwd=tmp_path, code=2)
    assert 'panoptic_train2017/000000000001.png' in empty.stderr
    maps.rmdir()
    gone = run(*train, cwd=tmp_path, code=2)
    assert 'annotations/panoptic_train2017/ is missing' in gone.stderr
    for result in (empty, gone):
        assert_one_sentence(result)
    assert not (tmp_path / 'work_dirs').exists()
