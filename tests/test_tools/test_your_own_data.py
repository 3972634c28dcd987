"""What docs/your_own_data.md says: the commands train on the sample dataset."""

import re
from pathlib import Path

import narrow_models
import pytest

from mmfocalnet.config_writing.base_config import read_base
from mmfocalnet.config_writing.child_config import child_config
from mmfocalnet.config_writing.labels import read_labels
from mmfocalnet.config_writing.new_config import new_config

ROOT = Path(__file__).resolve().parents[2]
RECIPE = 'configs/mask_rcnn/focalnet_t_1x.py'
# A narrow backbone from scratch and few images.
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
    RECIPE: ('coco', 'coco/segm_mAP_50', ['train_cfg.max_epochs=1', *narrow_models.MASK_RCNN]),
    'configs/upernet/focalnet_t_160k_ade20k.py': (
        'ade',
        'mIoU',
        ['train_cfg.max_iters=1', 'train_cfg.val_interval=1', *narrow_models.UPERNET],
    ),
}


@pytest.fixture
def checkout(home):
    """Our configs beside the sample dataset."""
    (home / 'configs').symlink_to(ROOT / 'configs')
    return home


def test_the_config_of_the_page(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    page = (ROOT / 'docs/your_own_data.md').read_text()
    shown = re.search(r'```python\n(_base_.*?)```', page, re.DOTALL)[1]
    recipe = read_base(RECIPE)
    labels = read_labels(Path('data/shapes/coco'), 'instances', {})
    labels.size, labels.splits['train'].count = (160, 160), 600
    written = child_config(
        RECIPE, recipe, new_config(recipe, labels), {}, ('data_root', 'metainfo')
    )
    assert written == shown


@pytest.mark.parametrize('recipe', SHORT)
def test_written_configs_train(recipe, forked_tool, checkout):
    data, metric, options = SHORT[recipe]
    forked_tool('new_config', f'data/shapes/{data}', '--recipe', recipe, cwd=checkout)
    result = forked_tool('train', 'my_config.py', '--cfg-options', *TINY, *options, cwd=checkout)
    assert re.search(rf'\(val\).* {metric}: +\d', result.stdout)


def test_classes_in_another_order(tool, forked_tool, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    forked_tool('new_config', 'data/shapes/coco', '--recipe', RECIPE, cwd=checkout)
    config = Path('my_config.py')
    config.write_text(config.read_text().replace("'triangle', 'star'", "'star', 'triangle'"))
    code, _, error = tool('train', config)
    assert code == 2
    assert '"circle", "square", "triangle", "star"' in error and 'order' in error
    assert not Path('work_dirs').exists()
