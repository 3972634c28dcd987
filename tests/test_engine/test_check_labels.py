"""Label maps that no class fits, and that importing the package registers every hook."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmfocalnet import CheckLabelsHook
from mmfocalnet.errors import DataError

CONFIGS = Path(__file__).parents[2] / 'configs'
BUILD = """
import sys
from mmengine.config import Config
from mmengine.registry import HOOKS, init_default_scope

for path in sys.argv[1:]:
    cfg = Config.fromfile(path)  # which imports mmfocalnet and nothing else of ours
    init_default_scope(cfg.default_scope)
    hooks = [*cfg.get('custom_hooks', []), *cfg.default_hooks.values()]
    print(*[type(HOOKS.build(hook)).__name__ for hook in hooks if 'Visual' not in hook.type])
"""


def test_importing_the_package_registers_the_hooks_of_every_config():
    leaves = [p for p in CONFIGS.glob('*/*.py') if not p.parent.name.startswith('_')]
    out = subprocess.run(
        [sys.executable, '-c', BUILD, *map(str, leaves)], capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr[-2000:]
    assert 'CheckLabelsHook' in out.stdout
    of_configs = [line for line in out.stdout.splitlines() if 'LoggerHook' in line]
    assert len(of_configs) == len(leaves)
    for hook in ('CheckLossesHook', 'AtomicCheckpointHook', 'SeedIterationsHook'):
        assert all(hook in line for line in of_configs), hook


def batch(labels, **settings):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.tensor(labels)[None]))
    sample.set_metainfo(dict(seg_map_path='map.png', **settings))
    return dict(data_samples=[sample])


class Runner:
    """What the hook asks of MMEngine's Runner."""

    def __init__(self, classes):
        dataset = type('Dataset', (), dict(metainfo=dict(classes=classes)))
        loader = type('DataLoader', (), dict(dataset=dataset))
        self.train_dataloader = self.val_dataloader = self.test_dataloader = loader


@pytest.mark.parametrize('stage', ['train', 'val', 'test'])
def test_labels_out_of_range(stage):
    before = getattr(CheckLabelsHook(), f'before_{stage}_iter')
    runner = Runner('abc')
    before(runner, 0, batch([[0, 2], [255, 1]], reduce_zero_label=True))
    with pytest.raises(DataError, match=r'map\.png.*label 4.*1 to 3.*255'):
        before(runner, 0, batch([[0, 3], [255, 1]], reduce_zero_label=True))
    with pytest.raises(DataError, match=r'map\.png.*label 3.*0 to 2'):
        before(runner, 0, batch([[0, 3]]))
    before(Runner(None), 0, batch([[3]]))
    views = batch([[7]])
    with pytest.raises(DataError, match='label 7'):
        before(runner, 0, dict(data_samples=[views['data_samples'] * 2]))
