"""The ops of mmcv that mmfocalnet implements in PyTorch, against float64 on the CPU."""

import importlib
from operator import attrgetter
from types import SimpleNamespace
from unittest import mock

import torch

from gpu_checks.operators import exact
from gpu_checks.report import Wrong, largest_error
from mmfocalnet.compat import ensure_mmcv_ops
from mmfocalnet.compat.mmcv_ops import OPS

LIMIT = 1e-4
# Multi-scale attention: heights and widths of the maps, and their first positions.
MAPS, STARTS = ([6, 9], [3, 5], [1, 2]), (0, 54, 69)


class Inputs:
    """Random tensors, the same on all devices; those with gradients are in ``leaves``."""

    def __init__(self, device, dtype):
        self.device, self.dtype, self.leaves = device, dtype, []
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape):
        """Numbers with gradients."""
        return self._leaf(torch.randn(shape, generator=self.generator))

    def uniform(self, *shape):
        """Numbers from 0 to 1 with gradients."""
        return self._leaf(torch.rand(shape, generator=self.generator))

    def scores(self, *shape):
        """Numbers from 0 to 1 without gradients."""
        return torch.rand(shape, generator=self.generator).to(self.device, self.dtype)

    def labels(self, classes, *shape):
        """Class indices."""
        return torch.randint(classes, shape, generator=self.generator).to(self.device)

    def boxes(self, count):
        """Corners (count, 4)."""
        corner = self.scores(count, 2) * 40
        return torch.cat([corner, corner + 1 + self.scores(count, 2) * 40], 1)

    def map(self):
        """Features of two images."""
        return self.normal(2, 8, 9, 12)

    def regions(self, count):
        """Boxes of two images (count, 5)."""
        return torch.cat([self.labels(2, count, 1).to(self.dtype), self.boxes(count)], 1)

    def _leaf(self, tensor):
        self.leaves.append(tensor.to(self.device, self.dtype).requires_grad_())
        return self.leaves[-1]


# Functions of modules in mmcv.ops, and their arguments.
CALLS = {
    'nms.nms': lambda draw: (draw.boxes(300), draw.scores(300), 0.5),
    'nms.soft_nms': lambda draw: (draw.boxes(80), draw.scores(80)),
    'nms.nms_match': lambda draw: (torch.cat([draw.boxes(80), draw.scores(80, 1)], 1), 0.4),
    'roi_align.roi_align': lambda draw: (draw.map(), draw.regions(30), (7, 5), 0.25, 2),
    'roi_pool.roi_pool': lambda draw: (draw.map(), draw.regions(30), (3, 2), 0.25),
    'deform_roi_pool.deform_roi_pool': lambda draw: (
        draw.map(), draw.regions(30), draw.normal(30, 2, 3, 2), (3, 2), 0.25, 2, 0.1
    ),
    'focal_loss.sigmoid_focal_loss': lambda draw: (
        draw.normal(60, 7), draw.labels(8, 60), 2.0, 0.25, None, 'none'
    ),
    'focal_loss.softmax_focal_loss': lambda draw: (
        draw.normal(60, 7), draw.labels(7, 60), 2.0, 0.25, None, 'sum'
    ),
    'multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply': lambda draw: (
        draw.normal(2, 71, 4, 8),
        *(torch.tensor(values, device=draw.device) for values in (MAPS, STARTS)),
        draw.uniform(2, 11, 4, 3, 3, 2), draw.uniform(2, 11, 4, 3, 3), 64
    ),
    'deform_conv.deform_conv2d': lambda draw: (
        draw.map(), draw.normal(2, 18, 9, 12), draw.normal(4, 8, 3, 3), 1, 1, 1, 1, 1
    ),
    'modulated_deform_conv.modulated_deform_conv2d': lambda draw: (
        draw.map(), draw.normal(2, 18, 9, 12), draw.uniform(2, 9, 9, 12),
        draw.normal(4, 8, 3, 3), draw.normal(4), 1, 1, 1, 1, 1
    ),
    'carafe.carafe': lambda draw: (draw.map(), draw.uniform(2, 50, 18, 24), 5, 2, 2),
    'psa_mask.psa_mask': lambda draw: (draw.normal(2, 35, 6, 8), 'collect', (5, 7)),
    'masked_conv.masked_conv2d': lambda draw: (
        # It has no gradient.
        draw.normal(1, 4, 9, 7).detach(), (draw.scores(1, 9, 7) < 0.4).to(draw.dtype),
        draw.normal(6, 4, 3, 3).detach(), draw.normal(6).detach(), 1
    ),
}  # fmt: skip


def run(report):
    ensure_mmcv_ops()
    with exact():
        for name in CALLS:
            report.check(name, compare, name, report.device)


def compare(name, device):
    module, _, function = name.partition('.')
    module = importlib.import_module(f'mmcv.ops.{module}')
    function = attrgetter(function)(module)
    with mock.patch.object(module, 'ext_module', SimpleNamespace(**OPS['pytorch'])):
        actual = results(function, CALLS[name], Inputs(device, torch.float32))
        expected = results(function, CALLS[name], Inputs('cpu', torch.float64))
    if len(actual) != len(expected):
        raise Wrong(f'{len(actual)} results instead of {len(expected)}')
    indices = {key: tensor for key, tensor in expected.items() if not tensor.is_floating_point()}
    largest_error(actual, indices, 1e-15)
    return {'largest error': largest_error(actual, expected, LIMIT), 'tensors': len(expected)}


def results(function, draw_arguments, inputs):
    """Outputs and, if they have some, gradients of the inputs."""
    out = function(*draw_arguments(inputs))
    outs = list(out) if isinstance(out, (tuple, list)) else [out]
    found = {f'output {i}': torch.as_tensor(tensor) for i, tensor in enumerate(outs)}
    if outs[0].requires_grad:
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        grads = torch.autograd.grad(out, inputs.leaves, grad)
        found |= {f'gradient {i}': tensor for i, tensor in enumerate(grads)}
    return found
