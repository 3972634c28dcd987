"""The configs in docs/your_own_data.md train on the sample dataset."""

import re
from pathlib import Path

import narrow_models
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs/your_own_data.md').read_text()
# The first line of each complete config is its path.
CONFIGS = dict(re.findall(r'```python\n# (configs/\S+)\n(.*?)```', PAGE, re.DOTALL))
# A narrow backbone from scratch and small images.
TINY = [
    'model.backbone.init_cfg=None',
    'model.backbone.depths=[1,1,1,1]',
    'default_hooks.logger.interval=1',
    *(
        f'{split}_dataloader.{key}'
        for split in ('train', 'val')
        for key in ('dataset.indices=2', 'num_workers=0', 'persistent_workers=False')
    ),
]
SHORT = {
    'configs/my_data/mask_rcnn.py': (
        'coco/segm_mAP_50',
        [
            *narrow_models.MASK_RCNN,
            'train_cfg.max_epochs=1',
            'val_dataloader.dataset.pipeline.1.scale=(160,160)',
            *(
                f'train_dataloader.dataset.pipeline.4.transforms.{place}.scales=[(160,160)]'
                for place in ('0.0', '1.0', '1.2')
            ),
        ],
    ),
    'configs/my_data/upernet.py': (
        'mIoU',
        [
            *narrow_models.UPERNET,
            'model.data_preprocessor.size=(64,64)',
            'train_dataloader.dataset.pipeline.3.scale=(256,64)',
            'train_dataloader.dataset.pipeline.4.crop_size=(64,64)',
            'train_cfg.max_iters=1',
            'train_cfg.val_interval=1',
            'val_dataloader.dataset.pipeline.1.scale=(160,160)',
        ],
    ),
}


@pytest.fixture
def checkout(home):
    """Our configs beside the sample dataset, with a folder for the user's configs."""
    (home / 'configs/my_data').mkdir(parents=True)
    for folder in (ROOT / 'configs').iterdir():
        (home / 'configs' / folder.name).symlink_to(folder)
    return home


def test_the_page_has_two_complete_configs():
    assert set(CONFIGS) == set(SHORT)


@pytest.mark.parametrize('name', SHORT)
def test_configs_of_the_page_train(name, forked_tool, checkout):
    (checkout / name).write_text(CONFIGS[name])
    metric, options = SHORT[name]
    result = forked_tool('train', name, '--cfg-options', *TINY, *options, cwd=checkout)
    assert re.search(rf'\(val\).* {metric}: +\d', result.stdout)


def test_classes_in_another_order(tool, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    name = 'configs/my_data/mask_rcnn.py'
    Path(name).write_text(CONFIGS[name].replace("'triangle', 'star'", "'star', 'triangle'"))
    code, _, error = tool('train', name)
    assert code == 2
    assert '"circle", "square", "triangle", "star"' in error and 'order' in error
    assert not Path('work_dirs').exists()
