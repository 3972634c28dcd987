"""Detectors and UperNet to compare: a training step and a prediction, phase by phase."""

from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData

from benchmarking.networks import OURS, row
from benchmarking.timing import Phases, autocast, counted, now
from mmfocalnet.models.pretrained import drop_pretrained

ROOT = Path(__file__).resolve().parents[2]
MMCV = "mmfocalnet, mmcv's attention"
DINO = 'configs/dino/detrex_focalnet_t_4scale_12e.py'
DETECTORS = {
    'mask_rcnn': 'configs/mask_rcnn/focalnet_t_1x.py',
    'atss': 'configs/atss/focalnet_t_3x.py',
    'upernet': 'configs/upernet/focalnet_t_160k_ade20k.py',
}
# Backbones of the detectors, with the channels of their four stages.
BACKBONES = {
    'FocalNet-T': (dict(drop_path_rate=0), (96, 192, 384, 768)),
    'Swin-T': (dict(type='SwinTransformer', drop_path_rate=0), (96, 192, 384, 768)),
    'R-50': (dict(type='ResNet', depth=50), (256, 512, 1024, 2048)),
}
# The phases of a training step and a prediction: module of the detector, method, name.
PHASES = [
    ('data_preprocessor', 'forward', 'preprocessing'),
    ('backbone', 'forward', 'backbone'),
    ('neck', 'forward', 'neck'),
    ('rpn_head', 'loss_and_predict', 'RPN'),
    ('rpn_head', 'predict', 'RPN'),
    ('roi_head', 'loss', 'box head'),
    ('roi_head', 'predict_bbox', 'box head'),
    ('roi_head', 'mask_loss', 'mask head'),
    ('roi_head', 'predict_mask', 'mask head'),
    ('bbox_head', 'loss', 'head'),
    ('bbox_head', 'predict', 'head'),
    ('decode_head', 'loss', 'head'),
    ('decode_head', 'predict', 'head'),
    ('auxiliary_head', 'loss', 'auxiliary head'),
]
HEADS_BACKWARD, BACKBONE_BACKWARD = 'backward of heads and neck', 'backward of the backbone'
OPTIMIZER = 'optimizer'


def detectors(name, args):
    """A detector or segmentor with each backbone."""
    return {backbone: partial(make_detector, name, backbone, args) for backbone in BACKBONES}


def make_detector(name, backbone, args):
    cfg = Config.fromfile(ROOT / DETECTORS[name])
    network, channels = BACKBONES[backbone]
    stages = cfg.model.backbone.get('out_indices', range(4))
    if 'type' in network:
        cfg.model.backbone = dict(out_indices=tuple(stages))
    cfg.model.backbone.update(network)
    if 'neck' in cfg.model:
        cfg.model.neck.in_channels = [channels[stage] for stage in stages]
    else:
        cfg.model.decode_head.in_channels = channels
        cfg.model.auxiliary_head.in_channels = channels[2]
        cfg.model.data_preprocessor.update(size=None, size_divisor=32)
    torch.manual_seed(0)
    return Detector(cfg, args)


class Detector:
    """A detector or segmentor with its optimizer, whose phases are timed."""

    def __init__(self, cfg, args):
        self.args = args
        self.model = build_detector(cfg).to(args.device)
        # Steps take as long, and each finds the same weights.
        cfg.optim_wrapper.optimizer.lr = 0.0
        self.optim_wrapper = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.sample = detection_sample if cfg.default_scope == 'mmdet' else segmentation_sample
        self.phases = Phases(args.device)
        self.finds_objects = False
        self._wrap_backward()
        for module, method, name in PHASES:
            if hasattr(self.model, module) and hasattr(getattr(self.model, module), method):
                self.phases.wrap(getattr(self.model, module), method, name)
        for method in ('zero_grad', 'step'):
            self.phases.wrap(self.optim_wrapper, method, OPTIMIZER)

    def _wrap_backward(self):
        """Time the backward pass in two parts: that of the backbone starts at its last output."""
        forward, backward = self.model.backbone.forward, self.optim_wrapper.backward
        device, reached = self.args.device, []

        def hooked(x):
            outs = forward(x)
            if torch.is_grad_enabled():
                outs[-1].register_hook(lambda grad: reached.append(now(device)))
            return outs

        def split(loss):
            start = now(device)
            backward(loss)
            middle = reached.pop()
            self.phases.seconds[HEADS_BACKWARD] = middle - start
            self.phases.seconds[BACKBONE_BACKWARD] = now(device) - middle

        self.model.backbone.forward, self.optim_wrapper.backward = hooked, split

    def inputs(self, shape):
        """Random images and annotations."""
        batch, _, height, width = shape
        images = torch.randint(256, shape, dtype=torch.uint8)
        return list(images), [self.sample(height, width) for _ in range(batch)]

    def predict(self, data):
        """Return the predictions, with post-processing of 100 objects."""
        if not self.finds_objects:
            self._lower_threshold(data)
        return self._predict(data)

    def _lower_threshold(self, data):
        """Random weights give low scores: use that of the 100th object as the threshold."""
        self.finds_objects = True
        head = getattr(self.model, 'roi_head', getattr(self.model, 'bbox_head', None))
        if head:
            head.test_cfg.score_thr = 0.0
            found = self._predict(data)[0].pred_instances
            head.test_cfg.score_thr = float(found.scores.min())

    def _predict(self, data):
        self.model.eval()
        with torch.no_grad(), autocast(self.args):
            return self.model.test_step(copied(data))

    def step(self, data):
        """Run a training step, with the optimizer."""
        self.model.train()
        with autocast(self.args):
            self.model.train_step(copied(data), self.optim_wrapper)

    def count_flops(self, data):
        """FLOPs of the forward pass in a prediction and in a training step."""
        predict = counted(partial(self.predict, data))
        self.model.train()
        batch = self.model.data_preprocessor(copied(data), training=True)
        return predict, counted(partial(self.model, **batch, mode='loss'))


def copied(data):
    images, samples = data
    return dict(inputs=images, data_samples=[sample.clone() for sample in samples])


def build_detector(cfg):
    drop_pretrained(cfg.model)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def detection_sample(height, width):
    """Annotations of one image: 8 objects with boxes and masks."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    torch.manual_seed(0)
    corner = torch.rand(8, 2) * torch.tensor([width / 2, height / 2])
    boxes = torch.cat([corner, corner + torch.tensor([width / 4, height / 4])], dim=1)
    masks = BitmapMasks([(torch.rand(height, width) > 0.5).byte().numpy()] * 8, height, width)
    return DetDataSample(
        metainfo=image_shapes(height, width),
        gt_instances=InstanceData(bboxes=boxes, labels=torch.arange(8), masks=masks),
    )


def segmentation_sample(height, width):
    """A label map of one image with random labels of 150 classes."""
    from mmseg.structures import SegDataSample

    labels = PixelData(data=torch.randint(150, (1, height, width)))
    return SegDataSample(metainfo=image_shapes(height, width), gt_sem_seg=labels)


def image_shapes(height, width):
    shapes = ('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape')
    return dict.fromkeys(shapes, (height, width)) | dict(scale_factor=(1, 1), padding_size=[0] * 4)


def dino(args):
    """The losses of DINO, with our and with mmcv's deformable attention."""

    def losses(model):
        return lambda x: [detection_loss(model, x)]

    def build():
        return build_detector(Config.fromfile(ROOT / DINO))

    return {
        MMCV: row(args, build, lambda model: with_mmcv_attention(losses(model))),
        OURS: row(args, build, losses),
    }


def detection_loss(model, images):
    samples = [detection_sample(*images.shape[2:]) for _ in images]
    for sample in samples:
        sample.gt_instances = sample.gt_instances.to(images.device)
    return model.parse_losses(model.loss(images, samples))[0]


def with_mmcv_attention(function):
    from mmcv.ops import multi_scale_deform_attn as module

    def run(x):
        ours = module.multi_scale_deformable_attn_pytorch
        module.multi_scale_deformable_attn_pytorch = module.mmcv_attention
        try:
            return function(x)
        finally:
            module.multi_scale_deformable_attn_pytorch = ours

    return run
