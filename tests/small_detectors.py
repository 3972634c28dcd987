"""Small detectors of mmdet with random weights that detect something, and their predictions."""

from pathlib import Path

import narrow_models
import torch
import torch.nn.functional as F
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

CONFIGS = Path(__file__).resolve().parents[1] / 'configs/demo'
DIVISOR = 32
# Variance of the weights times their number per output. Larger scores differ more, but saturate.
GAIN = dict(atss=3, mask_rcnn=1.5, cascade_rcnn=1.5, dino=3)
PROPOSAL_GAIN = 0.1
# Some candidates are below.
SCORE_THR = dict(atss=0.8, mask_rcnn=0.6, cascade_rcnn=0.4, dino=0)


def build(name, **options):
    """Build the detector of a demo config, in eval mode.

    Args:
        name: A key of `GAIN`.
        options: Changes of the model's config, such as ``backbone=dict(...)``.
    """
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    narrow = (option.split('=', 1) for option in getattr(narrow_models, name.upper()))
    cfg.merge_from_dict({key: yaml.safe_load(value) for key, value in narrow})
    cfg.model.backbone.depths = [1, 1, 1, 1]
    settings = cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg)
    settings.score_thr = SCORE_THR[name]
    cfg.merge_from_dict(dict(model=options))
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model).eval()
    generator = torch.Generator().manual_seed(1)
    for key, weight in model.named_parameters():
        if weight.ndim > 1 and not key.startswith('backbone'):
            gain = PROPOSAL_GAIN if 'rpn_cls' in key else GAIN[name]
            weight.data = torch.randn(weight.shape, generator=generator)
            weight.data *= (gain / weight[0].numel()) ** 0.5
    return model


class PaddedDetector(nn.Module):
    """What `build_detector` makes of a model, for images (B, 3, H, W) without padding."""

    def __init__(self, model, **settings):
        from mmfocalnet.deployment.detectors import build_detector

        super().__init__()
        self.detector = build_detector(model, **settings)

    def forward(self, images):
        return self.detector(pad(images), *images.shape[2:])


def pad(images):
    height, width = ((side + DIVISOR - 1) // DIVISOR * DIVISOR for side in images.shape[2:])
    return F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]))


@torch.no_grad()
def predict(model, images):
    """Predictions of mmdet for images (B, 3, H, W), an InstanceData each."""
    from mmdet.structures import DetDataSample

    padded = pad(images)
    size = tuple(images.shape[2:])
    meta = dict(
        img_shape=size,
        ori_shape=size,
        batch_input_shape=tuple(padded.shape[2:]),
        scale_factor=(1.0, 1.0),
    )
    samples = [DetDataSample(metainfo=dict(meta)) for _ in images]
    return [sample.pred_instances for sample in model.predict(padded, samples, rescale=False)]
