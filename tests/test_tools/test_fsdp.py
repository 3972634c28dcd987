"""Training over shards (FSDP) by two processes on the CPU, against training without."""

import re

import narrow_models
import pytest
import torch
from forked_tools import ROOT, end, start_two_trainings
from mmengine.utils import digit_version

pytestmark = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.4'),
    reason='FSDP of PyTorch 2.3 gathers the state of the optimizer on GPUs only',
)
CONFIG = ROOT / 'configs/demo/mask_rcnn.py'
# Nothing random but the order of the images, so that resumed runs see what others see.
FIXED = [
    'train_dataloader.dataset.pipeline.3.prob=0.0',
    'model.train_cfg.rpn.sampler.num=10000',
    'model.train_cfg.rcnn.sampler.num=1000',
]
FSDP = ['runner_type=FlexibleRunner', 'strategy.type=FocalNetFSDPStrategy']
LAYER_DECAY = [
    'optim_wrapper.constructor=FocalNetLayerDecayOptimizerConstructor',
    'optim_wrapper.paramwise_cfg.decay_rate=0.9',
]


def load(path):
    # Written by this test.
    return torch.load(path, weights_only=False)


def assert_same_weights(path, other):
    weights, others = load(path)['state_dict'], load(other)['state_dict']
    assert set(weights) == set(others)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=0, atol=1e-6, msg=name)


def norms(log):
    return [float(norm) for norm in re.findall(r'grad_norm: ([\d.]+)', log)]


@pytest.fixture
def train(tiny_options, tmp_path):
    """Train with layer-wise decay in two processes, in the work dir of a name; return the log."""

    def _train(name, *flags, more=()):
        options = [*tiny_options, *FIXED, *LAYER_DECAY, *more]
        both = start_two_trainings(CONFIG, tmp_path / name, *flags, options=options)
        codes = [end(process) for process in both]
        log = (tmp_path / f'{name}.log').read_text()
        assert codes == [0, 0], log
        return log

    return _train


def test_fsdp_saves_complete_weights_and_moments(train, forked_tool, tiny_options, tmp_path):
    more = [*FSDP, 'train_cfg.max_iters=1', 'default_hooks.checkpoint.interval=1']
    train('fsdp', more=more)
    checkpoint = load(tmp_path / 'fsdp/iter_1.pth')
    weights, moments = checkpoint['state_dict'], checkpoint['optimizer']['state']
    assert set(moments) <= set(weights)  # by name, as FSDP saves them
    assert 'backbone.layers.3.blocks.0.mlp.fc1.weight' in moments
    for name, state in moments.items():
        assert state['exp_avg'].shape == weights[name].shape
        # After one step they are 0.1 g and 0.001 g^2.
        torch.testing.assert_close(state['exp_avg_sq'], state['exp_avg'] ** 2 / 10)
    tested = forked_tool(
        'test', CONFIG, tmp_path / 'fsdp/iter_1.pth', '--work-dir', tmp_path / 'test',
        '--cfg-options', *tiny_options, *FSDP,
    ).stdout  # fmt: skip
    assert 'coco/segm_mAP' in tested


@pytest.mark.slow
def test_fsdp_trains_dino_as_without(home):
    options = [
        *narrow_models.DINO, 'train_dataloader.batch_size=2', 'train_cfg.max_iters=2',
        'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2',
        'param_scheduler.0.start_factor=1.0',
    ]  # fmt: skip
    for name, more in (('plain', []), ('fsdp', FSDP)):
        both = start_two_trainings(
            ROOT / 'configs/demo/dino.py', home / name, options=[*options, *more], cwd=home
        )
        codes = [end(process) for process in both]
        assert codes == [0, 0], (home / f'{name}.log').read_text()
    assert_same_weights(home / 'plain/iter_2.pth', home / 'fsdp/iter_2.pth')


@pytest.mark.slow
def test_fsdp_trains_and_resumes_as_without(train, tmp_path):
    """With gradients so large that they are clipped."""
    plain = train('plain')
    every = 'default_hooks.checkpoint.interval=1'
    first = train('fsdp', more=[*FSDP, every, 'train_cfg.max_iters=1'])
    log = train('fsdp', '--resume', more=[*FSDP, every])
    assert log.startswith(first)

    sharded = norms(log)
    assert len(sharded) == 2
    assert sharded == pytest.approx(norms(plain), abs=2e-4)
    assert min(sharded) > 5  # which is where the demo clips
    assert_same_weights(tmp_path / 'plain/iter_2.pth', tmp_path / 'fsdp/iter_2.pth')
