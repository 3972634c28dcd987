"""tools/train.py and tools/test.py with an mmseg config."""

import pickle
import re

import narrow_models
import pytest
from forked_tools import ROOT

CONFIG = ROOT / 'configs/demo/upernet.py'


@pytest.fixture(scope='session')
def options(shapes):
    root = f'{shapes}/ade'
    return [
        *(f'{split}_dataloader.dataset.data_root={root}' for split in ('train', 'val', 'test')),
        'train_dataloader.batch_size=2',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=2',
        'default_hooks.logger.interval=1',
        *narrow_models.UPERNET,
    ]


def test_test_with_every_flag(forked_tool, options, tmp_path):
    more = ('--work-dir', tmp_path, '--cfg-options', *options)
    forked_tool('train', CONFIG, *more)
    test = ('test', CONFIG, tmp_path / 'iter_2.pth')
    drawn, predictions = tmp_path / 'drawn', tmp_path / 'predictions.pkl'
    out = forked_tool(*test, '--out', predictions, '--show-dir', drawn, *more).stdout
    assert 'mIoU' in out
    with open(predictions, 'rb') as file:
        assert len(pickle.load(file)) == 3
    assert list(drawn.rglob('*.png'))

    tta = forked_tool(*test, '--tta', *more).stdout
    assert re.search(r'Iter\(test\).*mIoU', tta)


def test_missing_label_maps(tool, tmp_path):
    code, _, error = tool(
        'train', ROOT / 'configs/upernet/focalnet_t_160k_ade20k.py', '--work-dir',
        tmp_path / 'work', '--cfg-options', 'train_dataloader.dataset.data_root=data/none',
    )  # fmt: skip
    assert code == 2 and 'data/none/images/training' in error
    assert not (tmp_path / 'work').exists()


def test_a_label_without_a_class(tool, options, tmp_path):
    fewer = [
        'model.decode_head.num_classes=4',
        'model.auxiliary_head.num_classes=4',
        *(
            f'{split}_dataloader.dataset.metainfo.{setting}'
            for split in ('train', 'val')
            for setting in ('classes=("circle","square","triangle","star")', 'palette=[]')
        ),
    ]
    code, _, error = tool(
        'train', CONFIG, '--work-dir', tmp_path, '--cfg-options', *options, *fewer
    )
    assert code == 2 and re.search(r'\.png .* [567]\b.* 4\b', error)
    assert 'Traceback' not in error
