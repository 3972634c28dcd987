"""Backbones and operators to compare: name and builder of a Network."""

import types
from functools import partial

import torch
from torch.nn import functional as F

from benchmarking.timing import Phases, autocast, counted
from mmfocalnet import ops
from mmfocalnet.models import FocalNet
from mmfocalnet.models.focal_modulation import FocalModulation
from mmfocalnet.models.focalnet import Mlp

TINY = dict(embed_dim=96, depths=(2, 2, 6, 2), focal_levels=3, focal_windows=9)
OURS = 'mmfocalnet'


class Network:
    """A backbone, an operator or a loss, called with one tensor."""

    def __init__(self, model, call, args):
        self.model = model
        self.call = call
        self.args = args
        self.phases = Phases(args.device)

    def inputs(self, shape):
        """Random images, or features of an operator."""
        # An operator is inside a network; images need no gradient.
        is_image = shape[1] == 3
        return torch.randn(*shape, device=self.args.device, requires_grad=not is_image)

    def forward(self, x):
        """Outputs, as a sequence."""
        with autocast(self.args):
            out = self.call(x)
        return out if isinstance(out, (tuple, list)) else [out]

    def predict(self, x):
        """Run a forward pass without gradients."""
        with torch.no_grad():
            self.forward(x)

    def step(self, x):
        """Run a forward and a backward pass."""
        self.model.zero_grad(set_to_none=True)
        x.grad = None
        sum(out.float().mean() for out in self.forward(x)).backward()

    def count_flops(self, x):
        """FLOPs of the forward pass in a prediction and in a training step."""
        # A counter does not see into compiled code.
        flops = counted(partial(getattr(self.call, '_orig_mod', self.call), x))
        return flops, flops


def row(args, build, call=lambda model: model):
    def make():
        torch.manual_seed(0)
        model = build().to(args.device)
        model.train()  # returns nothing in backbones of mmdet
        return Network(model, call(model), args)

    return make


def backbones(args):
    name, path = 'without numba', 'pytorch'
    if args.device == 'cuda':  # The row "mmfocalnet" runs the path that is measured to be fastest.
        name, path = 'with triton', 'triton'
    builders = {
        'published layout': [lambda: as_published(focalnet())],
        'transformers FocalNet': [transformers_focalnet, feature_maps],
        OURS: [focalnet],
        f'{OURS}, use_checkpoint': [partial(focalnet, use_checkpoint=True)],
        f'{OURS} {name}': [focalnet, partial(on_path, path)],
        f'{OURS}, reference path': [focalnet, partial(on_path, 'reference')],
        f'{OURS}, torch.compile': [focalnet, partial(torch.compile, dynamic=False)],
        'Swin-T (mmdet)': [swin],
        'ConvNeXt-T (transformers)': [transformers_convnext, feature_maps],
    }
    if not args.compile:
        del builders[f'{OURS}, torch.compile']
    return {name: row(args, *arguments) for name, arguments in builders.items()}


def operators(args):
    def build():
        return FocalModulation(args.dim, focal_window=9, focal_level=3)

    triton = [name for name in ops.PATHS if name.startswith('triton')]
    unused = ('numba', 'pytorch') if args.device == 'cuda' else triton
    rows = {'published layout': row(args, lambda: as_published(build())), OURS: row(args, build)}
    for name in ops.PATHS:
        if name not in unused:
            rows[f'{OURS}, {name} path'] = row(args, build, partial(on_path, name))
    return rows


def focalnet(**kwargs):
    return FocalNet(**TINY, drop_path_rate=0, **kwargs)


def as_published(model):
    """Make a model compute as the published code does."""
    for module in model.modules():
        if isinstance(module, FocalModulation):
            module.forward = types.MethodType(algorithm_1, module)
        if isinstance(module, Mlp):
            module.forward = types.MethodType(lambda self, x: self.fc2(F.gelu(self.fc1(x))), module)
    return model


def algorithm_1(self, x):
    """Algorithm 1 in the published layout: channels-first, gradients by autograd."""
    x = self.f(x).permute(0, 3, 1, 2).contiguous()
    query, context, gates = torch.split(x, (self.dim, self.dim, self.focal_level + 1), 1)
    total = 0
    for level in range(self.focal_level):
        context = self.focal_layers[level](context)
        total = total + context * gates[:, level : level + 1]
    context = F.gelu(context.mean(2, keepdim=True).mean(3, keepdim=True))
    total = total + context * gates[:, self.focal_level :]
    x = query * self.h(total)
    return self.proj(x.permute(0, 2, 3, 1).contiguous())


def on_path(name, function):
    def run(*args):
        with ops.use_path(name):
            return function(*args)

    return run


def transformers_focalnet():
    from transformers import FocalNetBackbone, FocalNetConfig

    config = FocalNetConfig(
        **transformers_sizes([2, 2, 6, 2]),
        embed_dim=96,
        focal_levels=[3] * 4,
        focal_windows=[9] * 4,
        drop_path_rate=0,
    )
    return FocalNetBackbone(config)


def transformers_convnext():
    from transformers import ConvNextBackbone, ConvNextConfig

    return ConvNextBackbone(ConvNextConfig(**transformers_sizes([3, 3, 9, 3])))


def transformers_sizes(depths):
    stages = [f'stage{i}' for i in range(1, 5)]
    return dict(hidden_sizes=[96, 192, 384, 768], depths=depths, out_features=stages)


def feature_maps(model):
    """Call a backbone of transformers, which wraps its feature maps."""
    return lambda x: model(x).feature_maps


def swin():
    from mmdet.models.backbones import SwinTransformer

    return SwinTransformer(drop_path_rate=0)
