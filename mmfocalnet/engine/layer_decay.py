"""Layer-wise learning-rate decay: layers closer to the input get smaller learning rates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mmfocalnet.errors import ConfigError
from mmfocalnet.models import FocalNet
from mmfocalnet.registry import register

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
LAYER_SCALES = ('gamma_1', 'gamma_2')

# Keys that MMEngine's default constructor reads. It ignores others silently.
PARAMWISE = {
    *('custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult'),
    *('dwconv_decay_mult', 'dcn_offset_lr_mult', 'bypass_duplicate'),
}


@register(OPTIM_WRAPPER_CONSTRUCTORS)
class FocalNetLayerDecayOptimizerConstructor(DefaultOptimWrapperConstructor):
    """Multiply learning rates by ``decay_rate`` per layer between a parameter and the heads.

    With N blocks, the stem is layer 0 and the blocks are layers 1 to N. An embedding between two
    stages belongs to the block before it. Output norms, neck and heads are layer N + 1. Parameters
    of layer i have the learning rate ``lr * decay_rate ** (N + 1 - i)``. Norms, biases and layer
    scales have no weight decay, also in the heads.

    Args:
        optim_wrapper_cfg: As for MMEngine's default constructor: ``type``, ``optimizer`` with
            ``lr`` and ``weight_decay``, and arguments of the wrapper.
        paramwise_cfg: ``decay_rate`` in (0, 1]; optionally ``num_layers``, the expected N; and
            the keys of MMEngine's default constructor, whose factors are applied on top.
            ``custom_keys`` replace other rules as in MMEngine, except that norms, biases and
            layer scales decay only if a custom key sets ``decay_mult``.

    Raises:
        ConfigError: If ``decay_rate`` is missing or not in (0, 1], a key is unknown, or the
            optimizer has no ``lr`` or ``weight_decay``; when called, if the model has no FocalNet
            or another N.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        given = {'norm_decay_mult': 0.0, 'bias_decay_mult': 0.0, **(paramwise_cfg or {})}
        self.decay_rate = _check_decay_rate(given.pop('decay_rate', None))
        self.num_layers = given.pop('num_layers', None)
        unknown = sorted(set(given) - PARAMWISE)
        if unknown:
            raise ConfigError(
                f'Unknown key {unknown[0]!r} in paramwise_cfg: use one of '
                f'{", ".join(sorted({"decay_rate", "num_layers", *PARAMWISE}))}.'
            )
        for key in ('lr', 'weight_decay'):
            if optim_wrapper_cfg['optimizer'].get(key) is None:
                raise ConfigError(
                    f'{type(self).__name__} requires optim_wrapper.optimizer.{key}, which it '
                    'scales per layer: set it.'
                )
        super().__init__(optim_wrapper_cfg, given)

    def add_params(
        self,
        params: list[dict[str, Any]],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: bool | None = None,
    ) -> None:
        """Append a parameter group with learning rate and decay for each trainable parameter.

        Args:
            params: Parameter groups; modified in place.
            module: The module; the model itself if ``prefix`` is empty.
            prefix: Name of the module in the model.
            is_dcn_module: As in MMEngine's default constructor.

        Raises:
            ConfigError: If the model has no FocalNet, or not ``num_layers`` blocks.
        """
        start = len(params)
        super().add_params(params, module, prefix, is_dcn_module)
        self._set_decay(params[start:], module)
        if not prefix:  # MMEngine also calls this for each submodule.
            self._scale_rates(params, module)

    def _set_decay(self, groups: list[dict[str, Any]], module: nn.Module) -> None:
        own = {id(parameter): name for name, parameter in module.named_parameters(recurse=False)}
        for group in groups:
            factor = self._decay_factor(module, own.get(id(group['params'][0]), ''))
            # MMEngine keeps the settings of a custom key in the group.
            if factor is not None and 'decay_mult' not in group:
                group['weight_decay'] = self.base_wd * factor

    def _decay_factor(self, module: nn.Module, name: str) -> float | None:
        if name and isinstance(module, NORMS):
            return self.paramwise_cfg['norm_decay_mult']
        if name == 'bias':
            return self.paramwise_cfg['bias_decay_mult']
        return 0.0 if name in LAYER_SCALES else None

    def _scale_rates(self, groups: list[dict[str, Any]], model: nn.Module) -> None:
        networks = [module for module in model.modules() if isinstance(module, FocalNet)]
        if not networks:
            raise ConfigError(
                f'{type(self).__name__} found no FocalNet in {type(model).__name__}: set '
                "model.backbone=dict(type='FocalNet', ...) or remove optim_wrapper.constructor."
            )
        scales = {}
        for network in networks:
            heads = self._check_blocks(network) + 1
            ids = layer_ids(network)
            for name, parameter in network.named_parameters():
                scales[id(parameter)] = self.decay_rate ** (heads - ids[name])
        for group in groups:
            scale = scales.get(id(group['params'][0]), 1.0)
            group['lr'] = group.get('lr', self.base_lr) * scale
        print_log(
            f'Learning rates decay by {self.decay_rate} per layer, from 1 x lr in the heads to '
            f'{min(scales.values()):.3g} x lr in the stem.',
            'current',
        )

    def _check_blocks(self, network: FocalNet) -> int:
        blocks = sum(len(stage.blocks) for stage in network.layers)
        if self.num_layers not in (None, blocks):
            raise ConfigError(
                f'paramwise_cfg.num_layers is {self.num_layers}, but this FocalNet has {blocks} '
                'blocks: correct or remove it.'
            )
        return blocks


def layer_ids(network: FocalNet) -> dict[str, int]:
    """Return the layer number of each parameter of a FocalNet by name.

    The stem is layer 0; a block and the embedding after it have the number of blocks so far; the
    output norms have the total number of blocks plus one.

    Args:
        network: The backbone. Its modules may be wrapped.
    """
    layers = list(_layers(network))
    ids = {id(parameter): layer for layer, part in layers for parameter in part.parameters()}
    heads = layers[-1][0] + 1
    return {name: ids.get(id(parameter), heads) for name, parameter in network.named_parameters()}


def _layers(network: FocalNet) -> Iterator[tuple[int, nn.Module]]:
    # By attributes, because wrappers such as FSDP's change the names of parameters.
    yield 0, network.patch_embed
    layer = 0
    for stage in network.layers:
        for block in stage.blocks:
            layer += 1
            yield layer, block
        if stage.downsample is not None:
            yield layer, stage.downsample


def _check_decay_rate(rate: Any) -> float:
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
        raise ConfigError(
            'FocalNetLayerDecayOptimizerConstructor requires decay_rate in (0, 1], such as '
            f'paramwise_cfg=dict(decay_rate=0.9), got {rate!r}.'
        )
    return rate
