"""A model of three weights and all that MMEngine needs to train it in milliseconds."""

from itertools import count

import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn

RUNS = count()


@MODELS.register_module()
class ToyModel(BaseModel):
    """Linear regression."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, inputs, target, sample_idx=None, mode='tensor'):
        difference = self.linear(torch.stack(inputs))[:, 0] - torch.stack(target)
        return dict(loss=difference.square().mean()) if mode == 'loss' else list(difference)


@DATASETS.register_module()
class ToyDataset(BaseDataset):
    """Eight points of a plane, without noise."""

    def load_data_list(self):
        points = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
        return [dict(inputs=point, target=point.sum()) for point in points]


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """The largest difference and their mean; less is better."""

    def process(self, data_batch, data_samples):
        self.results += [abs(float(difference)) for difference in data_samples]

    def compute_metrics(self, results):
        return dict(error=max(results), mean=sum(results) / len(results))


def toy_config(work_dir, **settings):
    """Four epochs of two iterations, with a validation and a checkpoint after each.

    Args:
        work_dir: A folder.
        **settings: What differs at the top of the config; those of hooks are put in.
    """
    hooks = dict(
        checkpoint=dict(type='AtomicCheckpointHook', interval=1),
        iteration_seed=dict(type='SeedIterationsHook'),
        losses=dict(type='CheckLossesHook'),
    )
    hooks.update(settings.pop('default_hooks', {}))
    loader = dict(
        batch_size=4,
        num_workers=0,
        dataset=dict(type='ToyDataset', serialize_data=False, pipeline=[dict(type='SeedSample')]),
    )
    cfg = dict(
        model=dict(type='ToyModel'),
        work_dir=str(work_dir),
        experiment_name=f'toy_{next(RUNS)}',
        train_dataloader=dict(**loader, sampler=dict(type='SeededSampler')),
        val_dataloader=dict(**loader, sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=4),
        val_cfg=dict(),
        val_evaluator=dict(type='ToyMetric'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        default_hooks=hooks,
        default_scope='mmengine',
        launcher='none',
        randomness=dict(seed=0),
        log_level='ERROR',
    )
    return Config({**cfg, **settings}, filename=__file__)
