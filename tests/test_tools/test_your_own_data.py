"""The configs in docs/your_own_data.md run as they stand there, on the sample set."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs/your_own_data.md').read_text()
# Each complete config says in its first line where it goes.
CONFIGS = dict(re.findall(r'```python\n# (configs/\S+)\n(.*?)```', PAGE, re.DOTALL))
# A narrow backbone from scratch and small images: what has nothing to do with the data.
TINY = [
    'model.backbone.init_cfg=None',
    'model.backbone.embed_dim=8',
    'model.backbone.depths=[1,1,1,1]',
    'train_dataloader.dataset.indices=2',
    'val_dataloader.dataset.indices=2',
    'default_hooks.logger.interval=1',
]
SHORT = {
    'configs/my_data/mask_rcnn.py': (
        'coco/segm_mAP_50',
        [
            'model.neck.in_channels=[8,16,32,64]',
            'train_cfg.max_epochs=1',
            'val_dataloader.dataset.pipeline.1.scale=(160,160)',
            *(
                f'train_dataloader.dataset.pipeline.3.transforms.{place}.scales=[(160,160)]'
                for place in ('0.0', '1.0', '1.2')
            ),
        ],
    ),
    'configs/my_data/upernet.py': (
        'mIoU',
        [
            'model.decode_head.in_channels=[8,16,32,64]',
            'model.auxiliary_head.in_channels=32',
            'train_cfg.max_iters=1',
            'train_cfg.val_interval=1',
            'val_dataloader.dataset.pipeline.1.scale=(160,160)',
        ],
    ),
}


@pytest.fixture
def checkout(home):
    """Our configs beside the sample set, with room for configs of one's own."""
    (home / 'configs/my_data').mkdir(parents=True)
    for folder in (ROOT / 'configs').iterdir():
        (home / 'configs' / folder.name).symlink_to(folder)
    return home


def test_the_page_has_two_complete_configs():
    assert set(CONFIGS) == set(SHORT)


@pytest.mark.parametrize('name', SHORT)
def test_runs_as_it_stands(name, run, checkout):
    (checkout / name).write_text(CONFIGS[name])
    metric, options = SHORT[name]
    out = run(
        sys.executable, ROOT / 'tools/train.py', name, '--cfg-options', *TINY, *options,
        cwd=checkout,
    ).stdout  # fmt: skip
    assert re.search(rf'\(val\).* {metric}: +\d', out)


def test_the_wrong_classes_are_named(run, checkout):
    name = 'configs/my_data/mask_rcnn.py'
    (checkout / name).write_text(CONFIGS[name].replace("'triangle', 'star'", "'star', 'triangle'"))
    result = run(sys.executable, ROOT / 'tools/train.py', name, cwd=checkout, code=2)
    assert '"circle", "square", "triangle", "star"' in result.stderr
    assert 'the order differs' in result.stderr
    assert not (checkout / 'work_dirs').exists()
