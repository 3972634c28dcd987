"""What a FocalNet looks at: gates, modulators, kernels and receptive fields of any model.

Everything is read through hooks, which are gone afterwards; the model is left as it was.
Stages, blocks and focal levels count from 0, and from the end below 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmfocalnet.checkpoints import resize_kernel
from mmfocalnet.errors import UserError
from mmfocalnet.inference.pipeline import build_pipeline
from mmfocalnet.models import FocalNet
from mmfocalnet.models.focal_modulation import FocalModulation


class ModulationMaps(NamedTuple):
    """What one focal modulation does at every location of one image.

    Attributes:
        gates: Gates of the L focal levels, then that of the global context, float32
            (L + 1, H, W): Figure 3, the g of Eq. 5. They may be negative.
        modulator: L2 norm of the modulator over its channels, float32 (H, W): Figure 4, the
            h(...) of Eq. 6.
        kernel_sizes: Kernel size of each focal level.
        stride: Pixels of the input per location.
        stage: Stage of the modulation, from 0.
        block: Block in its stage, from 0.
    """

    gates: np.ndarray
    modulator: np.ndarray
    kernel_sizes: tuple[int, ...]
    stride: int
    stage: int
    block: int


class ReceptiveField(NamedTuple):
    """What the central output of a stage depends on.

    Attributes:
        values: Absolute gradient of the input pixels, at most 1, float32 (H, W).
        box: Top, left, bottom and right of the pixels that the focal levels and embeddings
            can reach, the last two exclusive; beyond the image where negative or larger. Only
            the global context (the spatial average) reaches pixels outside of it.
        stage: The stage, from 0.
    """

    values: np.ndarray
    box: tuple[int, int, int, int]
    stage: int

    @property
    def size(self) -> int:
        """Height and width of the box in pixels: the theoretical receptive field."""
        return self.box[2] - self.box[0]


def find_focalnet(model: nn.Module) -> FocalNet:
    """Find the (first) FocalNet in a detector, segmentor, wrapper or backbone.

    Raises:
        UserError: If there is none.
    """
    for module in model.modules():
        if isinstance(module, FocalNet):
            return module
    raise UserError(
        f'{type(model).__name__} contains no FocalNet: give a model with '
        "backbone=dict(type='FocalNet', ...)."
    )


def find_block(model: nn.Module, stage: int = -1, block: int = -1) -> tuple[int, int]:
    """Turn numbers of a stage and a block, which may count from the end, into those from 0.

    Raises:
        UserError: If there is no FocalNet, no such stage or block, or another mixer in it.
    """
    net = find_focalnet(model)
    if type(net.layers[0].blocks[0].modulation) is not FocalModulation:
        raise UserError(
            'There are no gates, modulators or kernels of focal modulation with another mixer: '
            "give a model whose backbone has mixer='focal_modulation'."
        )
    stage = _index('stage', stage, len(net.layers), 'the model')
    return stage, _index('block', block, len(net.layers[stage].blocks), f'stage {stage}')


def prepare_image(image: np.ndarray, cfg: Config) -> tuple[np.ndarray, Tensor]:
    """Resize, normalise and pad an image as a config's model does when testing.

    Args:
        image: BGR, uint8 (H, W, 3).
        cfg: Config of a detector or segmentor.

    Returns:
        The resized image to look at, RGB, uint8 (H', W', 3), and to compute with, (3, H'', W''):
        the global context sees the zeros on the right and at the bottom too.

    Raises:
        ConfigError: If the config has no tests.
        ImageError: If the image is so narrow that a side would have no pixel.
    """
    data = build_pipeline(cfg)(image)
    settings = cfg.model.get('data_preprocessor') or dict(type='BaseDataPreprocessor')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        preprocessor = MODELS.build(settings)
    batch = preprocessor({key: [data[key]] for key in ('inputs', 'data_samples')})
    shown = data['inputs'].flip(0).permute(1, 2, 0).contiguous().numpy()  # [3, H', W'] of BGR
    return shown, batch['inputs'][0]


@contextmanager
def watch_modulation(
    model: nn.Module, stage: int = -1, block: int = -1
) -> Iterator[list[ModulationMaps]]:
    """Record gates and modulator whenever the model runs inside the ``with``.

    Args:
        model: Any module that contains a FocalNet.
        stage: Stage of the block. Defaults to the last one.
        block: Block in the stage. Defaults to the last one.

    Yields:
        A list that each forward pass extends by one entry per image of its batch.

    Raises:
        UserError: If there is no FocalNet, or no such stage or block.
    """
    net = find_focalnet(model)
    stage, block = find_block(net, stage, block)
    modulation = net.layers[stage].blocks[block].modulation
    seen: list[ModulationMaps] = []
    gates: list[Tensor] = []

    def see_gates(_layer: nn.Module, _inputs: tuple, out: Tensor) -> None:
        gates[:] = out.detach()[..., 2 * modulation.dim :]  # [B, H, W, L + 1]

    def see_modulator(_layer: nn.Module, _inputs: tuple, out: Tensor) -> None:
        norms = out.detach().float().norm(dim=1)  # [B, C, H, W] -> [B, H, W]
        for gate, norm in zip(gates, norms, strict=True):
            seen.append(
                ModulationMaps(
                    _array(gate.permute(2, 0, 1)),
                    _array(norm),
                    _kernel_sizes(modulation),
                    net.patch_embed.patch_size * 2**stage,
                    stage,
                    block,
                )
            )

    # FocalModulation calls layers that carry a hook one by one, h after f.
    handles = [
        modulation.f.register_forward_hook(see_gates),
        modulation.h.register_forward_hook(see_modulator),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def modulation_maps(
    model: nn.Module, image: Tensor, stage: int = -1, block: int = -1
) -> ModulationMaps:
    """Compute the gates (Figure 3) and the modulator's magnitude (Figure 4) for one image.

    Args:
        model: Any module that contains a FocalNet, which alone runs, in eval mode.
        image: Normalised image (C_in, H, W).
        stage: Stage of the block. Defaults to the last one.
        block: Block in the stage. Defaults to the last one.

    Returns:
        Both maps, at the resolution of the stage.

    Raises:
        UserError: If there is no FocalNet, or no such stage or block.
    """
    net = find_focalnet(model)
    with watch_modulation(net, stage, block) as seen, _as_it_was(net), torch.no_grad():
        net(image[None])
    return seen[-1]


def level_kernels(
    model: nn.Module, stage: int = -1, block: int = -1, window: int | None = None
) -> list[np.ndarray]:
    """Copy the depth-wise kernels of a block's focal levels.

    Args:
        model: Any module that contains a FocalNet.
        stage: Stage of the block. Defaults to the last one.
        block: Block in the stage. Defaults to the last one.
        window: Kernel size at the first focal level in pretraining, to cut out of each kernel
            what it was before it was padded to a larger window; further levels grow as they do
            in the model. Defaults to None: the whole kernels.

    Returns:
        One array per level, float32 (C, k, k).

    Raises:
        UserError: If there is no FocalNet, no such stage or block, or the window is larger
            than the model's or even.
    """
    net = find_focalnet(model)
    stage, block = find_block(net, stage, block)
    modulation = net.layers[stage].blocks[block].modulation
    weights = [layer[0].weight.detach() for layer in modulation.focal_layers]
    if window is not None and weights:
        ours = weights[0].shape[-1]
        if not (1 <= window <= ours and window % 2):
            raise UserError(
                f'window={window} is no kernel size of pretraining: give an odd number from 1 to '
                f'{ours}, the kernel size at the first focal level of stage {stage}.'
            )
        cut = ours - window
        weights = [resize_kernel(weight, weight.shape[-1] - cut) for weight in weights]
    return [_array(weight.squeeze(1)) for weight in weights]


def receptive_field(model: nn.Module, images: Tensor, stage: int = -1) -> ReceptiveField:
    """Measure the effective receptive field of a stage, beside the theoretical one.

    It is the gradient of the features at the centre of the stage, summed over channels, with
    respect to the input: its absolute value, averaged over images and input channels and
    divided by its maximum.

    Args:
        model: Any module that contains a FocalNet, which alone runs, in eval mode.
        images: Normalised images (B, C_in, H, W).
        stage: The stage. Defaults to the last one.

    Returns:
        The gradient's map and the box that the focal levels can reach.

    Raises:
        UserError: If there is no FocalNet, or no such stage.
    """
    net = find_focalnet(model)
    stage, _ = find_block(net, stage, -1)
    outs: list[Tensor] = []

    def see(_layer: nn.Module, _inputs: tuple, out: Tensor) -> None:
        outs.append(out)

    # Before the output norm: the sum of a LayerNorm's outputs hardly depends on its input.
    handle = net.layers[stage].register_forward_hook(see)
    try:
        with _as_it_was(net), torch.inference_mode(False), torch.enable_grad():
            pixels = images.detach().clone().requires_grad_()
            net.requires_grad_(False)
            net(pixels)
            row, column = (side // 2 for side in outs[-1].shape[1:3])
            (gradient,) = torch.autograd.grad(outs[-1][:, row, column].sum(), pixels)
    finally:
        handle.remove()
    values = gradient.abs().mean(dim=(0, 1))
    values = values / values.max().clamp(min=torch.finfo(values.dtype).tiny)
    (top, bottom), (left, right) = (_reach(net, stage, place) for place in (row, column))
    return ReceptiveField(_array(values), (top, left, bottom, right), stage)


def _reach(net: FocalNet, stage: int, place: int) -> tuple[int, int]:
    """First pixel and the one after the last that reach a location, along one side."""
    first = last = place
    for i in reversed(range(stage + 1)):
        for block in net.layers[i].blocks:
            # Each level's context comes from that of the level before, so their reaches add.
            reach = sum(size // 2 for size in _kernel_sizes(block.modulation))
            first, last = first - reach, last + reach
        conv = (net.layers[i - 1].downsample if i else net.patch_embed).proj
        first = first * conv.stride[0] - conv.padding[0]
        last = last * conv.stride[0] - conv.padding[0] + conv.kernel_size[0] - 1
    return first, last + 1


def _index(name: str, value: int, count: int, where: str) -> int:
    if not -count <= value < count:
        raise UserError(
            f'There is no {name} {value} in {where}: give 0 to {count - 1}, or -1 for the last.'
        )
    return value % count


def _kernel_sizes(modulation: FocalModulation) -> tuple[int, ...]:
    return tuple(layer[0].kernel_size[0] for layer in modulation.focal_layers)


@contextmanager
def _as_it_was(net: nn.Module) -> Iterator[None]:
    """Run in eval mode; put each module's mode and each parameter's requires_grad back."""
    # Module by module, for frozen stages are in eval mode while others train.
    modes = {module: module.training for module in net.modules()}
    needs = {parameter: parameter.requires_grad for parameter in net.parameters()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, need in needs.items():
            parameter.requires_grad_(need)


def _array(tensor: Tensor) -> np.ndarray:
    # A copy: kernels would share the model's memory.
    return tensor.detach().float().cpu().numpy().copy()
