"""Small DINO detectors with random weights, and what the code bases that published DINO compute.

tests/data/dino has a file per code base and number of scales.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / 'tests/data/dino').glob('*.npz'))
BACKBONE = (
    *('embed_dim', 'depths', 'focal_levels', 'focal_windows', 'out_indices'),
    *('use_conv_embed', 'use_postln', 'use_layerscale', 'normalize_modulator'),
)


def numbers(name):
    """Outputs of a detector as tensors, and its settings under ``config``."""
    with np.load(ROOT / f'tests/data/dino/{name}.npz') as file:
        found = {key: file[key] for key in file.files}
    config = json.loads(found.pop('config').item())
    rows = json.loads(found.pop('weights').item())
    return dict(
        {key: torch.from_numpy(value) for key, value in found.items()}, config=config, rows=rows
    )


def weights(found):
    """The state dict of a detector, in the names of its code base."""
    state = {}
    for key, shape, scale, shift, drawn_as in found['rows']:
        seed = (zlib.crc32(drawn_as.encode()) + int(found['seed'])) % 2**32
        values = shift + scale * np.random.RandomState(seed).standard_normal(shape)
        state[key] = torch.from_numpy(np.asarray(values, np.float32))
    return state


def config(settings, num_classes=None):
    """The config of a detector in mmdet, made from the recipe of its code base."""
    recipe = 'detrex_focalnet_l' if settings['source'] == 'detrex' else 'focalnet_l'
    kind = f'fl{settings["focal_levels"]}_{settings["levels"]}scale'
    cfg = Config.fromfile(ROOT / f'configs/dino/{recipe}_{kind}_12e.py')
    # The recipes must have these values already.
    encoding = cfg.model.positional_encoding
    assert encoding.temperature == settings['temperature']
    assert encoding.offset == settings.get('offset', 0.0)
    assert cfg.model.num_feature_levels == settings['levels']
    backbone = {key: settings[key] for key in BACKBONE}
    cfg.model.backbone = dict(type='FocalNet', **backbone)
    cfg.model.num_queries = settings['num_queries']
    cfg.model.neck.in_channels = [settings['embed_dim'] * 2**i for i in settings['out_indices']]
    cfg.model.bbox_head.num_classes = num_classes or settings['num_classes']
    for part in (cfg.model.encoder, cfg.model.decoder):
        part.layer_cfg.ffn_cfg.feedforward_channels = settings['ffn']
    return cfg


def build(cfg):
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(cfg.model)


def batch(model, found, **instances):
    """The image of a detector as a batch for mmdet, with its annotations."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    image = found['image'].flip(-1).permute(2, 0, 1)  # RGB to BGR
    size = tuple(image.shape[1:])
    meta = dict(img_shape=size, ori_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    sample = DetDataSample(metainfo=meta)
    if instances:
        sample.gt_instances = InstanceData(**instances)
    return model.data_preprocessor(dict(inputs=[image], data_samples=[sample]), bool(instances))
