"""Training steps and predictions of the models of configs/demo, with random weights and data."""

import importlib
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement, PixelData

from gpu_checks.operators import exact
from gpu_checks.report import Skipped, Wrong, largest_error
from mmfocalnet import ops
from mmfocalnet.config_writing.trial import build_model

CONFIGS = Path(__file__).resolve().parents[2] / 'configs/demo'
QUICK = ('mask_rcnn', 'atss', 'upernet')
STEPS = 3
SIZE = (96, 160)
CHECKPOINTING = 1e-4
# A detection equals another one up to pixels or relative to the coordinates, and in its score. A
# few may be lost, because rounding decides between equal scores and overlaps.
PIXELS, RELATIVE, SCORE, FOUND = 1e-2, 1e-3, 1e-3, 0.95
EQUAL_PIXELS = 0.999


def run(report):
    names = sorted(path.stem for path in CONFIGS.glob('*.py'))
    types = (torch.bfloat16, torch.float16) if report.on_gpu else ()
    with exact():
        for name in names if report.full else QUICK:
            report.check(f'{name}, training', train, name, report.device)
            report.check(f'{name}, prediction', compare_predictions, name, report.device)
            for dtype in types or (torch.bfloat16,) * (name == 'mask_rcnn'):
                title = f'{name}, training, {str(dtype).removeprefix("torch.")}'
                report.check(title, train, name, report.device, dtype)
        report.check('mask_rcnn, use_checkpoint', compare_checkpointing, report.device)


class Model:
    """The model of a demo config with random weights."""

    def __init__(self, name, **backbone):
        self.cfg = Config.fromfile(CONFIGS / f'{name}.py')
        self.cfg.model.backbone.update(backbone)
        self.scope = self.cfg.default_scope
        if self.scope in ('mmdet', 'mmseg') and not is_importable(self.scope):
            raise Skipped(f'{self.scope} is not installed')
        self.network = build_model(self.cfg)

    def losses(self, batch):
        """The total loss, and the values that are logged."""
        with DefaultScope.overwrite_default_scope(self.scope):
            data = self.network.data_preprocessor(batch, True)
            loss, logged = self.network.parse_losses(self.network(**data, mode='loss'))
        return loss, {name: value.detach() for name, value in logged.items()}

    def predict(self, batch, device):
        """Predictions in eval mode, on the CPU."""
        self.network.to(device).eval()
        with DefaultScope.overwrite_default_scope(self.scope), torch.no_grad():
            data = self.network.data_preprocessor(batch, False)
            samples = self.network(**data, mode='predict')
        return [sample.cpu() for sample in samples]

    def batch(self):
        """Two random images with annotations."""
        if self.scope == 'mmdet':
            from mmdet.testing import demo_mm_inputs

            return demo_mm_inputs(2, (3, *SIZE), num_classes=4, with_mask=True, with_semantic=True)
        images = [torch.randint(256, (3, *SIZE), dtype=torch.uint8) for _ in range(2)]
        return dict(inputs=images, data_samples=[self._sample() for _ in images])

    def _sample(self):
        if self.scope != 'mmseg':
            sample = BaseDataElement()
            sample.gt_label = torch.tensor(1)
            return sample
        from mmseg.structures import SegDataSample

        labels = PixelData(data=torch.randint(7, (1, *SIZE)))
        return SegDataSample(metainfo=dict(img_shape=SIZE, ori_shape=SIZE), gt_sem_seg=labels)


def is_importable(package):
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


def train(name, device, dtype=None):
    """A few training steps, under autocast if a type is given."""
    model = Model(name)
    network = model.network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    updates = []
    optimizer.register_step_post_hook(lambda *_: updates.append(1))
    # Lower than the default, which many models reduce in their first steps.
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10, enabled=dtype == torch.float16)
    batch = model.batch()
    for _ in range(STEPS):
        with torch.autocast(device, dtype, enabled=dtype is not None):
            loss, logged = model.losses(batch)
        if not loss:
            raise Wrong('the loss is 0')
        if bad := [key for key, value in logged.items() if not value.isfinite().all()]:
            raise Wrong(f'NaN or infinite: {", ".join(bad)}')
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    if not updates:
        raise Wrong(f'no update in {STEPS} steps: gradients overflow in float16')
    return {'loss': loss.item(), 'updates': len(updates)}


def compare_checkpointing(device):
    """Losses and gradients with and without use_checkpoint."""
    found = []
    for use_checkpoint in (False, True):
        model = Model('mask_rcnn', use_checkpoint=use_checkpoint)
        network = model.network.to(device).train()
        torch.manual_seed(0)  # boxes are sampled at random
        loss, logged = model.losses(model.batch())
        loss.backward()
        grads = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        found.append(logged | dict(gradients=torch.cat(grads)))
    return {'largest difference': largest_error(*found, CHECKPOINTING)}


def compare_predictions(name, device):
    """Predictions on a device, and by the reference path on the CPU."""
    model = Model(name)
    excite(model.network)
    batch = model.batch()
    with ops.use_path('reference'):
        expected = model.predict(batch, 'cpu')
    actual = model.predict(batch, device)
    numbers = [compare_samples(*pair) for pair in zip(actual, expected, strict=True)]
    return {key: min(n[key] for n in numbers) for key in numbers[0]}


def excite(network):
    """Give all layers random weights with which outputs vary and objects are found."""
    torch.manual_seed(0)  # with which each family finds objects
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=(1.5 / weight[0].numel()) ** 0.5)


def compare_samples(actual, expected):
    numbers = {}
    if 'pred_instances' in expected:
        numbers |= compare_boxes(actual.pred_instances, expected.pred_instances)
    for field in ('pred_sem_seg', 'pred_panoptic_seg'):
        if field in expected:
            maps = (torch.cat(list(s.get(field).values())) for s in (actual, expected))
            equal = float(torch.eq(*maps).float().mean())
            if not equal >= EQUAL_PIXELS:
                raise Wrong(f'{field}: {equal:.2%} of the pixels are equal')
            numbers[f'{field}, equal pixels'] = equal
    scores = {
        name: [
            s.get(name) if name == 'pred_scores' else s.get(name).data for s in (actual, expected)
        ]
        for name in ('seg_logits', 'pred_scores')
        if name in expected
    }
    for name, (score, right) in scores.items():
        numbers[f'error of {name}'] = largest_error({name: score}, {name: right}, SCORE)
    return numbers


def compare_boxes(actual, expected):
    if not len(expected):
        raise Wrong('no object is found, so nothing is compared')
    found = min(share_found(actual, expected), share_found(expected, actual))
    if not found >= FOUND:
        raise Wrong(f'{found:.1%} of the objects have an equal box, score and label')
    return {'equal objects': found, 'objects': len(expected)}


def share_found(objects, others):
    """The share of objects that are among others."""
    distance = (objects.bboxes[:, None] - others.bboxes).abs()
    limit = (RELATIVE * objects.bboxes.abs()).clamp(min=PIXELS)[:, None]
    equal = (distance <= limit).all(2)
    equal &= (objects.scores[:, None] - others.scores).abs() <= SCORE
    equal &= objects.labels[:, None] == others.labels
    return float(equal.any(1).float().mean()) if len(objects) else 0.0
