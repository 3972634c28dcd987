"""Gates, modulators and kernels of the focal modulation in any model that contains a FocalNet.

Forward hooks read them and are removed afterwards; the model is not changed. Stages, blocks and
focal levels count from 0; negative numbers count from the end.
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
    """Gates and modulator of one focal modulation at every location of one image.

    Attributes:
        gates: Gates of the L focal levels, then of the global context, float32 (L + 1, H, W):
            Figure 3, the g of Eq. 5. They may be negative.
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


def find_focalnet(model: nn.Module) -> FocalNet:
    """Return the first FocalNet in a detector, segmentor, wrapper or backbone.

    Raises:
        UserError: If there is none.
    """
    for module in model.modules():
        if isinstance(module, FocalNet):
            return module
    raise UserError(
        f'{type(model).__name__} contains no FocalNet: use a model with '
        "backbone=dict(type='FocalNet', ...)."
    )


def find_block(model: nn.Module, stage: int = -1, block: int = -1) -> tuple[int, int]:
    """Return the non-negative indices of a stage and of a block in it.

    Raises:
        UserError: If there is no FocalNet, no such stage or block, or if its mixer is not focal
            modulation.
    """
    net = find_focalnet(model)
    if type(net.layers[0].blocks[0].modulation) is not FocalModulation:
        raise UserError(
            "The model's mixer has no gates, modulators or kernels: use a backbone with "
            "mixer='focal_modulation'."
        )
    stage = _index('stage', stage, len(net.layers), 'the model')
    return stage, _index('block', block, len(net.layers[stage].blocks), f'stage {stage}')


def prepare_image(image: np.ndarray, cfg: Config) -> tuple[np.ndarray, Tensor]:
    """Resize, normalise and pad an image as a config's model does when testing.

    Args:
        image: BGR, uint8 (H, W, 3).
        cfg: Config of a detector or segmentor.

    Returns:
        The resized image, RGB, uint8 (H', W', 3), and the model's input (3, H'', W''), padded
        with zeros on the right and at the bottom, which are part of the global context.

    Raises:
        ConfigError: If the config has no test pipeline.
        ImageError: If the image is so narrow that a side would be resized to 0 pixels.
    """
    data = build_pipeline(cfg)(image)
    settings = cfg.model.get('data_preprocessor') or dict(type='BaseDataPreprocessor')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        preprocessor = MODELS.build(settings)
    batch = preprocessor({key: [data[key]] for key in ('inputs', 'data_samples')})
    resized = data['inputs'].flip(0).permute(1, 2, 0)  # BGR (3, H', W') -> RGB (H', W', 3)
    return resized.contiguous().numpy(), batch['inputs'][0]


@contextmanager
def watch_modulation(
    model: nn.Module, stage: int = -1, block: int = -1
) -> Iterator[list[ModulationMaps]]:
    """Record gates and modulator of a block whenever the model runs inside the ``with``.

    Args:
        model: Any module that contains a FocalNet.
        stage: Stage of the block. Defaults to the last one.
        block: Block in the stage. Defaults to the last one.

    Yields:
        A list, to which each forward pass appends one entry per image of its batch.

    Raises:
        UserError: As `find_block`.
    """
    net = find_focalnet(model)
    stage, block = find_block(net, stage, block)
    modulation = net.layers[stage].blocks[block].modulation
    recorded: list[ModulationMaps] = []
    gates: list[Tensor] = []

    def record_gates(_layer: nn.Module, _inputs: tuple, out: Tensor) -> None:
        gates[:] = out.detach()[..., 2 * modulation.dim :]  # (B, H, W, L + 1)

    def record_modulator(_layer: nn.Module, _inputs: tuple, out: Tensor) -> None:
        norms = out.detach().float().norm(dim=1)  # (B, C, H, W) -> (B, H, W)
        for gate, norm in zip(gates, norms, strict=True):
            recorded.append(
                ModulationMaps(
                    to_array(gate.permute(2, 0, 1)),
                    to_array(norm),
                    kernel_sizes(modulation),
                    net.patch_embed.patch_size * 2**stage,
                    stage,
                    block,
                )
            )

    # FocalModulation calls layers that have a hook one by one, h after f.
    handles = [
        modulation.f.register_forward_hook(record_gates),
        modulation.h.register_forward_hook(record_modulator),
    ]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def modulation_maps(
    model: nn.Module, image: Tensor, stage: int = -1, block: int = -1
) -> ModulationMaps:
    """Compute the gates (Figure 3) and the modulator's norm (Figure 4) for one image.

    Only the FocalNet runs, in eval mode.

    Args:
        model: Any module that contains a FocalNet.
        image: Normalised image (C_in, H, W).
        stage: Stage of the block. Defaults to the last one.
        block: Block in the stage. Defaults to the last one.

    Returns:
        Both maps, at the resolution of the stage.

    Raises:
        UserError: As `find_block`.
    """
    net = find_focalnet(model)
    with watch_modulation(net, stage, block) as recorded, preserving_modes(net), torch.no_grad():
        net(image[None])
    return recorded[-1]


def level_kernels(
    model: nn.Module, stage: int = -1, block: int = -1, window: int | None = None
) -> list[np.ndarray]:
    """Copy the depth-wise kernels of a block's focal levels.

    Args:
        model: Any module that contains a FocalNet.
        stage: Stage of the block. Defaults to the last one.
        block: Block in the stage. Defaults to the last one.
        window: Kernel size at the first focal level in pretraining. Crops each kernel to the size
            that it had before padding to the model's window. Defaults to None: not cropped.

    Returns:
        One array per level, float32 (C, k, k).

    Raises:
        UserError: As `find_block`, or if the window is even or larger than the model's.
    """
    net = find_focalnet(model)
    stage, block = find_block(net, stage, block)
    modulation = net.layers[stage].blocks[block].modulation
    weights = [layer[0].weight.detach() for layer in modulation.focal_layers]
    if window is not None and weights:
        size = weights[0].shape[-1]
        if not (1 <= window <= size and window % 2):
            raise UserError(
                f'window={window} is invalid: specify an odd number from '
                f'1 to {size}, the kernel size at the first focal level of stage {stage}.'
            )
        weights = [resize_kernel(weight, weight.shape[-1] - size + window) for weight in weights]
    return [to_array(weight.squeeze(1)) for weight in weights]


def kernel_sizes(modulation: FocalModulation) -> tuple[int, ...]:
    """Kernel size of each focal level."""
    return tuple(layer[0].kernel_size[0] for layer in modulation.focal_layers)


@contextmanager
def preserving_modes(net: nn.Module) -> Iterator[None]:
    """Run in eval mode; restore each module's mode and each parameter's requires_grad."""
    # Each module, because frozen stages are in eval mode while others train.
    modes = {module: module.training for module in net.modules()}
    requires_grad = {parameter: parameter.requires_grad for parameter in net.parameters()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, required in requires_grad.items():
            parameter.requires_grad_(required)


def to_array(tensor: Tensor) -> np.ndarray:
    """Copy a tensor to a float32 array; an uncopied kernel would share the model's memory."""
    return tensor.detach().float().cpu().numpy().copy()


def _index(name: str, value: int, count: int, where: str) -> int:
    if not -count <= value < count:
        raise UserError(
            f'There is no {name} {value} in {where}: specify 0 to {count - 1}, or -1 for the last.'
        )
    return value % count
