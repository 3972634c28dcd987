"""Classes of a checkpoint that have the names of classes of the training data."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.runner import BaseLoop

from mmfocalnet import MatchClassesHook
from mmfocalnet.checkpoints.dino import LABEL_EMBEDDING

HEAD = 'bbox_head.cls_branches.0.weight'
OURS = ('cell', 'Dog', 'person')


class Loop(BaseLoop):
    def __init__(self):
        pass

    def run(self):
        pass


@pytest.fixture
def runner():
    model = torch.nn.Module()
    state = {HEAD: torch.full((3, 2), -1.0), LABEL_EMBEDDING: torch.full((3, 4), -1.0)}
    model.state_dict = lambda: state
    dataset = dict(type='mmdet.CocoDataset', metainfo=dict(classes=OURS))
    cfg = ConfigDict(train_dataloader=dict(dataset=dataset), resume=False)
    return SimpleNamespace(model=model, cfg=cfg, _train_loop=Loop())


def make_checkpoint(classes=('person', 'dog'), rows=2):
    weights = {
        HEAD: torch.arange(2.0 * rows).view(rows, 2),
        LABEL_EMBEDDING: torch.ones(rows, 4),
        'neck.weight': torch.zeros(5),
    }
    return dict(state_dict=weights, meta=dict(dataset_meta=dict(classes=classes)))


def test_rows_follow_the_names(runner):
    checkpoint = make_checkpoint()
    MatchClassesHook().after_load_checkpoint(runner, checkpoint)
    assert checkpoint['state_dict'][HEAD].tolist() == [[-1, -1], [2, 3], [0, 1]]
    assert checkpoint['state_dict'][LABEL_EMBEDDING][:, 0].tolist() == [-1, 1, 1]
    assert checkpoint['state_dict']['neck.weight'].shape == (5,)


def test_a_plain_state_dict_is_left_as_it_is(runner):
    checkpoint = make_checkpoint()['state_dict']
    MatchClassesHook().after_load_checkpoint(runner, checkpoint)
    assert checkpoint[HEAD].shape == (2, 2)


@pytest.mark.parametrize(
    'classes', [None, (), 'person', (1, 2), ('person',), ('person', 'dog', 'cat'), OURS]
)
def test_without_a_name_for_each_class_the_checkpoint_is_left_as_it_is(runner, classes):
    checkpoint = make_checkpoint(classes)
    MatchClassesHook().after_load_checkpoint(runner, checkpoint)
    assert checkpoint['state_dict'][HEAD].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize('kind', ['test', 'resume'])
def test_testing_and_resuming_load_the_checkpoint_as_it_is(runner, kind):
    """Also if a class was renamed in the config after training."""
    if kind == 'test':
        runner._train_loop = dict(type='IterBasedTrainLoop')
    else:
        runner.cfg.resume = True
    checkpoint = make_checkpoint(('cell', 'dog', 'human'), rows=3)
    MatchClassesHook().after_load_checkpoint(runner, checkpoint)
    assert checkpoint['state_dict'][HEAD].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_weights_of_another_model_are_left_to_mmengine(runner):
    """Another number of layers, or another width."""
    checkpoint = make_checkpoint()
    more = 'bbox_head.cls_branches.7.weight'
    checkpoint['state_dict'][more] = torch.zeros(2, 2)
    checkpoint['state_dict'][LABEL_EMBEDDING] = torch.zeros(2, 9)
    MatchClassesHook().after_load_checkpoint(runner, checkpoint)
    assert checkpoint['state_dict'][more].shape == (2, 2)
    assert checkpoint['state_dict'][LABEL_EMBEDDING].shape == (2, 9)
    assert checkpoint['state_dict'][HEAD].shape == (3, 2)
