"""Models of random weights, small enough to run in a test."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

CONFIGS = Path(__file__).resolve().parents[2] / 'configs/demo'
NARROW = {
    'mask_rcnn': {'model.neck.in_channels': [8, 16, 32, 64]},
    'atss': {'model.neck.in_channels': [16, 32, 64]},
    'upernet': {
        'model.decode_head.in_channels': [8, 16, 32, 64],
        'model.auxiliary_head.in_channels': 32,
    },
    # Every query is sure enough and keeps its mask, so that there are segments.
    'mask2former': {
        'model.panoptic_head.in_channels': [8, 16, 32, 64],
        'model.test_cfg.object_mask_thr': 0.0,
        'model.test_cfg.iou_thr': 0.0,
    },
}


@pytest.fixture(scope='session')
def random_model(tmp_path_factory):
    """Config, checkpoint and options of a demo's model with random weights."""
    made = {}

    def make(name):
        if name not in made:
            options = {'model.backbone.embed_dim': 8, **NARROW[name]}
            cfg = Config.fromfile(CONFIGS / f'{name}.py')
            cfg.merge_from_dict(options)
            torch.manual_seed(0)
            with DefaultScope.overwrite_default_scope(cfg.default_scope):
                model = MODELS.build(cfg.model)
                model.init_weights()
            path = tmp_path_factory.mktemp('weights') / f'{name}.pth'
            torch.save(dict(state_dict=model.state_dict(), meta={}), path)
            made[name] = (CONFIGS / f'{name}.py', path, options)
        return made[name]

    return make


@pytest.fixture(scope='session')
def predictor(random_model):
    from mmfocalnet.inference import load_predictor

    made = {}

    def make(name):
        if name not in made:
            config, checkpoint, options = random_model(name)
            made[name] = load_predictor(config, checkpoint, cfg_options=options)
        return made[name]

    return make
