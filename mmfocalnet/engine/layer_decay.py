"""Layer-wise learning-rate decay: the nearer a layer is to the image, the slower it learns."""

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


# What MMEngine's default constructor reads; it passes over anything else without a word.
PARAMWISE = {
    *('custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult'),
    *('dwconv_decay_mult', 'dcn_offset_lr_mult', 'bypass_duplicate'),
}


@register(OPTIM_WRAPPER_CONSTRUCTORS)
class FocalNetLayerDecayOptimizerConstructor(DefaultOptimWrapperConstructor):
    """Multiply learning rates by ``decay_rate`` per layer between a weight and the heads.

    With N blocks in all, the stem is layer 0, the blocks are 1 to N, an embedding between two
    stages belongs to the last block before it, and output norms, neck and heads are layer
    N + 1. A weight of layer i learns at ``lr * decay_rate ** (N + 1 - i)``. Norms, biases and
    layer scales, in the heads too, have no weight decay.

    Args:
        optim_wrapper_cfg: As MMEngine's default constructor takes it: ``type``, ``optimizer``
            with ``lr`` and ``weight_decay``, and arguments of the wrapper.
        paramwise_cfg: ``decay_rate`` in (0, 1]; optionally ``num_layers``, the N that the
            config counts on; and all that MMEngine's default constructor takes, whose factors
            come on top. A match in ``custom_keys`` replaces other rules as it does there, but
            norms, biases and layer scales decay only if it gives ``decay_mult``.

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
                f'paramwise_cfg has {unknown[0]!r}, which nothing reads: correct it to one of '
                f'{", ".join(sorted({"decay_rate", "num_layers", *PARAMWISE}))}.'
            )
        for key in ('lr', 'weight_decay'):
            if optim_wrapper_cfg['optimizer'].get(key) is None:
                raise ConfigError(
                    f'{type(self).__name__} needs {key} in optim_wrapper.optimizer, which it '
                    'sets for each layer: give it there.'
                )
        super().__init__(optim_wrapper_cfg, given)

    def add_params(
        self,
        params: list[dict[str, Any]],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: bool | None = None,
    ) -> None:
        """Append a group for each trainable parameter of a module, with its rate and decay.

        Args:
            params: Groups so far; modified in place.
            module: The module; the model itself where ``prefix`` is empty.
            prefix: Its name in the model.
            is_dcn_module: As in MMEngine's default constructor.

        Raises:
            ConfigError: If the model has no FocalNet, or not ``num_layers`` blocks.
        """
        start = len(params)
        super().add_params(params, module, prefix, is_dcn_module)
        self._set_decay(params[start:], module)
        if not prefix:  # MMEngine calls this for every submodule too
            self._scale_rates(params, module)

    def _set_decay(self, groups: list[dict[str, Any]], module: nn.Module) -> None:
        own = {id(parameter): name for name, parameter in module.named_parameters(recurse=False)}
        for group in groups:
            factor = self._decay_factor(module, own.get(id(group['params'][0]), ''))
            # MMEngine leaves the settings of a custom key in the group.
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
                f'{type(self).__name__} found no FocalNet in {type(model).__name__}: give the '
                "model backbone=dict(type='FocalNet', ...), or drop optim_wrapper.constructor."
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
            f'Learning rates decay by {self.decay_rate} per layer, from x 1 at the heads to '
            f'x {min(scales.values()):.3g} at the stem.',
            'current',
        )

    def _check_blocks(self, network: FocalNet) -> int:
        blocks = sum(len(stage.blocks) for stage in network.layers)
        if self.num_layers not in (None, blocks):
            raise ConfigError(
                f'paramwise_cfg has num_layers={self.num_layers}, but this FocalNet has {blocks} '
                'blocks: correct it, or leave it out.'
            )
        return blocks


def layer_ids(network: FocalNet) -> dict[str, int]:
    """Number the layers of a FocalNet from the image on.

    Args:
        network: The backbone, its parts wrapped or not.

    Returns:
        By parameter name: 0 in the stem, the number of blocks so far in a block and in the
        embedding after it, one more than the number of blocks in the output norms.
    """
    layers = list(_layers(network))
    ids = {id(parameter): layer for layer, part in layers for parameter in part.parameters()}
    heads = layers[-1][0] + 1
    return {name: ids.get(id(parameter), heads) for name, parameter in network.named_parameters()}


def _layers(network: FocalNet) -> Iterator[tuple[int, nn.Module]]:
    # By attributes, not by names: wrappers such as FSDP's add to names.
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
            'FocalNetLayerDecayOptimizerConstructor needs decay_rate in (0, 1], such as '
            f'paramwise_cfg=dict(decay_rate=0.9), got {rate!r}.'
        )
    return rate
