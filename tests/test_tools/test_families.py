"""Every family trains, evaluates, saves, resumes and tests, in one process and in two.

On its demo config, with a narrow backbone and a few small images.
"""

import re

import narrow_models
import pytest
from forked_tools import ROOT, end, start_two_trainings
from stacks import ops_in_pytorch

TINY = [
    'train_dataloader.batch_size=2',
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'default_hooks.checkpoint.interval=2',
    'default_hooks.logger.interval=1',
]
FAMILIES = {
    'mask_rcnn': ('coco/segm_mAP_50', narrow_models.MASK_RCNN),
    'mask_rcnn-isotropic': ('coco/segm_mAP_50', narrow_models.ISOTROPIC),
    'cascade_rcnn': ('coco/segm_mAP_50', narrow_models.CASCADE_RCNN),
    # After two iterations no score reaches the threshold.
    'atss': ('coco/bbox_mAP_50', [*narrow_models.ATSS, 'model.test_cfg.score_thr=0']),
    'sparse_rcnn': ('coco/bbox_mAP_50', narrow_models.SPARSE_RCNN),
    'dino': (
        'coco/bbox_mAP_50',
        [*narrow_models.DINO, 'auto_scale_lr.base_batch_size=8'],
    ),
    'upernet': ('mIoU', narrow_models.UPERNET),
    'mask2former': ('coco_panoptic/PQ', narrow_models.MASK2FORMER),
    'mask2former_semantic': ('mIoU', narrow_models.MASK2FORMER_SEMANTIC),
}
# One detector with masks, one segmentor, one model with queries; the others take minutes more.
DEFAULT = ('mask_rcnn', 'upernet', 'mask2former')
CASES = [
    pytest.param(
        name,
        marks=[
            *([] if name in DEFAULT else [pytest.mark.slow]),
            *([ops_in_pytorch] if 'rcnn' in name else []),
        ],
    )
    for name in FAMILIES
]


def demo(name):
    return ROOT / f'configs/demo/{name.partition("-")[0]}.py'


def test_every_demo_is_listed():
    # Classification has a different dataset: see test_classification.py.
    demos = {*map(demo, FAMILIES), demo('classification')}
    assert set((ROOT / 'configs/demo').glob('*.py')) == demos


@pytest.mark.parametrize('name', CASES)
def test_trains_evaluates_saves_resumes_and_tests(name, forked_tool, home):
    metric, model = FAMILIES[name]
    config = demo(name)
    options = ['--work-dir', home / 'work', '--cfg-options', *TINY, *model]

    first = forked_tool('train', config, '--amp', '--auto-scale-lr', *options, cwd=home).stdout
    assert 'AmpOptimWrapper' in first
    assert 'Scaling the original LR by 0.25' in first
    assert re.search(rf'Iter\(val\).* {metric}: +\d', first)

    resume = ('train', config, '--resume', 'auto', *options, 'train_cfg.max_iters=3')
    resumed = forked_tool(*resume, cwd=home).stdout
    assert re.search('resumed .*iter: 2', resumed)
    assert 'Iter(train) [3/3]' in resumed

    out = forked_tool('test', config, home / 'work/iter_3.pth', *options, cwd=home).stdout
    assert re.search(rf'Iter\(test\).* {metric}: +\d', out)


@pytest.mark.parametrize('name', CASES)
def test_two_processes(name, home):
    metric, model = FAMILIES[name]
    both = start_two_trainings(demo(name), home / 'work', options=[*TINY, *model], cwd=home)
    codes = [end(process) for process in both]
    out = (home / 'work.log').read_text()
    assert codes == [0, 0], out
    assert out.count('Saving checkpoint at 2 iterations') == 1
    assert re.search(rf'Iter\(val\).* {metric}: +\d', out)
