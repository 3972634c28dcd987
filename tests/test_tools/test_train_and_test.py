"""tools/train.py, tools/test.py and the scripts that launch them, as a user runs them."""

import pickle
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from forked_tools import ROOT, end, free_port, ranks_of_two, start_training, start_two_trainings

from mmfocalnet import FocalNet

CONFIG = ROOT / 'configs/demo/mask_rcnn.py'


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
    """In a fresh interpreter, which imports the package by itself."""
    out = run(
        sys.executable, 'tools/test.py', CONFIG, trained, '--work-dir', tmp_path,
        '--out', tmp_path / 'predictions.pkl', '--show-dir', 'drawn', '--wait-time', '0',
        '--cfg-options', *tiny_options,
    ).stdout  # fmt: skip
    assert 'coco/segm_mAP' in out
    with open(tmp_path / 'predictions.pkl', 'rb') as file:
        assert len(pickle.load(file)) == 3
    assert len(list(tmp_path.glob('*/drawn/*.jpg'))) == 3


def test_test_time_augmentation(forked_tool, trained, tiny_options, tmp_path):
    out = forked_tool(
        'test', CONFIG, trained, '--work-dir', tmp_path, '--tta', '--cfg-options', *tiny_options
    ).stdout
    assert 'coco/bbox_mAP' in out
    assert 'segm_mAP' not in out


def test_two_processes_train_evaluate_and_write_one_checkpoint(tiny_options, tmp_path):
    work_dir = tmp_path / 'work'
    both = start_two_trainings(CONFIG, work_dir, options=tiny_options)
    out = Path(f'{work_dir}.log')
    assert [end(process) for process in both] == [0, 0], out.read_text()
    assert out.read_text().count('Saving checkpoint at 2 iterations') == 1
    assert 'coco/bbox_mAP' in out.read_text()
    assert [p.name for p in work_dir.glob('*.pth')] == ['iter_2.pth']
    keys = torch.load(work_dir / 'iter_2.pth', weights_only=False)['state_dict']
    assert not any(key.startswith('module.') for key in keys)


def test_two_tasks_of_slurm(tiny_options, tmp_path):
    """With its environment variables; test_clusters.py has a Slurm cluster."""
    names = dict(WORLD_SIZE='SLURM_NTASKS', RANK='SLURM_PROCID', LOCAL_RANK='SLURM_LOCALID')
    both = [
        start_training(
            CONFIG, tmp_path / 'work', '--launcher', 'slurm', options=tiny_options,
            env={'SLURM_STEP_ID': '0', **{names.get(name, name): rank[name] for name in rank}},
        )
        for rank in ranks_of_two()
    ]  # fmt: skip
    out = tmp_path / 'work.log'
    assert [end(process) for process in both] == [0, 0], out.read_text()
    assert out.read_text().count('Saving checkpoint at 2 iterations') == 1


@pytest.mark.e2e
def test_the_scripts_for_two_processes(run, tiny_options, tmp_path):
    options = ['--work-dir', tmp_path, '--cfg-options', *tiny_options]
    train = run('tools/dist_train.sh', CONFIG, 2, *options, env={'PORT': free_port()})
    assert train.stdout.count('Saving checkpoint at 2 iterations') == 1
    test = run(
        'tools/dist_test.sh', CONFIG, tmp_path / 'iter_2.pth', 2, *options,
        env={'PORT': free_port()},
    )  # fmt: skip
    assert 'coco/bbox_mAP' in test.stdout


def test_the_command_that_a_script_launches(run):
    env = {'PYTHON': 'echo', 'PORT': '1234', 'NNODES': '2'}
    command = run('tools/dist_train.sh', CONFIG, 4, '--amp', env=env).stdout
    for part in ('torch.distributed.run', '--nnodes=2', '--master_port=1234', '--nproc_per_node=4'):
        assert part in command
    assert command.endswith(f'{CONFIG} --amp --launcher pytorch\n')
    command = run('tools/dist_test.sh', CONFIG, 'x.pth', 2, env=env).stdout
    assert command.endswith(f'tools/test.py {CONFIG} x.pth --launcher pytorch\n')


def test_usage_of_the_scripts(run):
    for script in ('dist_train.sh', 'dist_test.sh', 'slurm_train.sh'):
        assert 'usage:' in run(f'tools/{script}', code=2).stderr
    assert 'none.py' in run('tools/dist_train.sh', 'none.py', 2, code=2).stderr
    assert "'two'" in run('tools/dist_train.sh', CONFIG, 'two', code=2).stderr
    assert "'0'" in run('tools/dist_test.sh', CONFIG, 'x.pth', 0, code=2).stderr


@pytest.mark.e2e
def test_the_train_tool_of_mmdet(run, tiny_options, tmp_path):
    """A config's custom_imports is enough: nothing of ours needs to be imported first."""
    package = Path(find_spec('mmdet').origin).parent
    out = run(
        sys.executable, package / '.mim/tools/train.py', CONFIG, '--work-dir', tmp_path,
        '--cfg-options', *tiny_options,
    ).stdout  # fmt: skip
    assert 'coco/bbox_mAP_50' in out


def test_collect_env(forked_tool):
    out = forked_tool('collect_env').stdout
    for name in ('mmfocalnet:', 'Stack:', 'mmcv ops:', 'PyTorch:', 'Devices:', 'Threads:'):
        assert name in out


# ------------------------------------------------------------------------------------------------
# Errors before a run
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def fails(tool, tmp_path):
    """Assert that a tool ends in an error message that has these tokens, and writes nothing."""

    def _fails(name, *arguments, tokens, work_dir=tmp_path / 'work'):
        code, _, error = tool(name, *arguments, '--work-dir', work_dir)
        assert code == 2, error
        last = error.strip().splitlines()[-1]
        assert last.startswith(f'{name}.py: ') and 'Traceback' not in error, error
        for token in tokens:
            assert token in last
        if work_dir == tmp_path / 'work':
            assert not work_dir.exists()

    return _fails


@pytest.mark.parametrize(
    ('name', 'arguments', 'tokens'),
    [
        ('train', ['configs/none.py'], ['configs/none.py']),
        ('train', [ROOT / 'README.md'], ['README.md']),
        ('train', [CONFIG, '--cfg-options', 'model.backbone.depths.9.x=1'], ['depths']),
        ('train', [CONFIG, '--cfg-options', 'foo'], ['--cfg-options']),
        ('train', [CONFIG, '--resume', 'none.pth'], ['none.pth']),
        ('train', [CONFIG, '--launcher', 'pytorch'], ['RANK', 'tools/dist_train.sh']),
        ('train', [CONFIG, '--launcher', 'slurm'], ['SLURM_STEP_ID', 'tools/slurm_train.sh']),
        ('test', [CONFIG, 'none.pth'], ['none.pth']),
        ('test', [CONFIG, ROOT / 'README.md'], ['README.md']),
        ('test', [CONFIG, 'none.pth', '--out', 'x.json'], ['--out x.json', '.pkl']),
        (
            'test',
            [ROOT / 'configs/mask2former/focalnet_t_coco_panoptic.py', 'x.pth', '--tta'],
            ['--tta', 'tta_model', 'focalnet_t_coco_panoptic.py'],
        ),
    ],
)
def test_wrong_arguments(fails, tiny_options, name, arguments, tokens):
    if '--cfg-options' not in arguments and '--tta' not in arguments:
        arguments = [*arguments, '--cfg-options', *tiny_options]
    fails(name, *arguments, tokens=tokens)


@pytest.mark.parametrize(
    ('option', 'tokens'),
    [
        ('model.backbone.focal_windows=4', ['focal_window', '4']),
        ('model.backbone.arch=tiny_lfr', ['tiny_lfr', 'tiny_lrf']),
        ('model.backbone.focal_level=2', ['focal_level']),
        ('model.backbone.type=FocalNat', ['FocalNat']),
        ('model.backbone.init_cfg.type=Xavier', ['Pretrained']),
        ('model.neck.in_channels=[96,192,384,768]', ['in_channels', '8, 16, 32, 64']),
        ('model.neck.in_channels=[1,2]', ['in_channels', '8, 16, 32, 64']),
        ('model.roi_head.bbox_head.num_classes=3', ['bbox_head.num_classes', '3', '4']),
        ('val_dataloader.dataset.metainfo.classes=("cat","dog")', ['cat', 'dog']),
    ],
)
def test_wrong_settings(fails, tiny_options, option, tokens):
    fails('train', CONFIG, '--cfg-options', *tiny_options, option, tokens=tokens)


@pytest.mark.parametrize(
    ('name', 'option', 'token'),
    [
        ('train', 'train_cfg.max_iter=1', 'max_iter'),
        ('test', 'test_evaluator.metric=foo', 'foo'),
        ('test', 'test_evaluator.metric_items=[foo]', 'foo'),
    ],
)
def test_settings_that_fail_later(tool, trained, tiny_options, tmp_path, name, option, token):
    """When the loop is built, or when results are evaluated."""
    checkpoint = [trained] if name == 'test' else []
    arguments = [CONFIG, *checkpoint, '--work-dir', tmp_path, '--cfg-options', *tiny_options]
    code, _, error = tool(name, *arguments, option)
    assert code in (2, 3) and token in error


def test_missing_data(fails):
    config = ROOT / 'configs/mask_rcnn/focalnet_t_1x.py'
    option = 'train_dataloader.dataset.data_root=data/none/'
    missing = 'data/none/annotations/instances_train2017.json'
    fails('train', config, '--cfg-options', option, tokens=[missing])


def test_missing_panoptic_maps(fails, shapes, tmp_path, monkeypatch):
    shutil.copytree(shapes, tmp_path / 'data/shapes')
    monkeypatch.chdir(tmp_path)
    maps = tmp_path / 'data/shapes/coco/annotations/panoptic_train2017'
    for path in maps.iterdir():
        path.unlink()
    train = ('train', ROOT / 'configs/demo/mask2former.py')
    fails(*train, tokens=['panoptic_train2017/000000000001.png'])
    maps.rmdir()
    fails(*train, tokens=['annotations/panoptic_train2017/'])


def test_an_unavailable_checkpoint(fails, tiny_options, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    url = 'http://127.0.0.1:9/focalnet_tiny_lrf.pth'
    pretrained = [
        'model.backbone.init_cfg.type=Pretrained',
        f'model.backbone.init_cfg.checkpoint={url}',
    ]
    fails('train', CONFIG, '--cfg-options', *tiny_options, *pretrained, tokens=[url])
    assert not list((tmp_path / 'hub').rglob('*.pth*'))


def test_backbone_checkpoints_that_do_not_fit(fails, tiny_options, tmp_path):
    path = tmp_path / 'wide.pth'
    net = FocalNet(embed_dim=16, depths=[1, 1, 2, 1], focal_windows=3)
    torch.save(net.state_dict(), path)
    arguments = (
        'train', CONFIG, '--cfg-options', *tiny_options, 'model.backbone.init_cfg.type=Pretrained',
        f'model.backbone.init_cfg.checkpoint={path}',
    )  # fmt: skip
    fails(*arguments, tokens=['embed_dim', '16', '8'])
    path.write_bytes(path.read_bytes()[:5000])
    fails(*arguments, tokens=['wide.pth', '5000'])


def test_testing_needs_no_pretrained_weights_but_the_right_checkpoint(
    forked_tool, fails, trained, tiny_options, tmp_path
):
    nowhere = [
        'model.backbone.init_cfg.type=Pretrained',
        'model.backbone.init_cfg.checkpoint=http://127.0.0.1:9/x.pth',
    ]
    test = ('test', CONFIG, trained)
    options = ('--cfg-options', *tiny_options)
    forked_tool(*test, '--work-dir', tmp_path / 'passed', *options, *nowhere)
    other = 'model.neck.out_channels=32'
    fails(*test, *options, other, tokens=[trained.name], work_dir=tmp_path / 'failed')


def test_resuming_from_a_broken_checkpoint(fails, trained, tiny_options, tmp_path):
    resume = ('train', CONFIG, '--resume', '--cfg-options', *tiny_options)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_2.pth'))
    fails(*resume, tokens=['last_checkpoint', 'iter_2.pth'], work_dir=tmp_path)
    (tmp_path / 'iter_2.pth').write_bytes(trained.read_bytes()[:10000])
    fails(*resume, tokens=['iter_2.pth', '10000'], work_dir=tmp_path)


def test_a_work_dir_that_is_a_file(fails, tmp_path):
    (tmp_path / 'file').write_text('mine')
    fails('train', CONFIG, tokens=['--work-dir', 'file'], work_dir=tmp_path / 'file')


def test_a_config_without_a_model(fails, tmp_path):
    (tmp_path / 'empty.py').write_text('')
    fails('train', tmp_path / 'empty.py', tokens=['empty.py', 'model'])
