"""FocalNet as the backbone of a detector, segmentor or classifier: the changes to its config."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope

from mmfocalnet.archs import CHECKPOINTS, find_arch
from mmfocalnet.errors import ConfigError
from mmfocalnet.models import FocalNet
from mmfocalnet.registry import type_name

# Mean and standard deviation (RGB) of the images that the checkpoints were trained on.
_NORMALIZATION = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
# Necks of plain ViTs, which resize four maps of stride 16 to strides 4, 8, 16 and 32.
_RESIZING_NECKS = ('Feature2Pyramid', 'MultiLevelNeck')
# Backbones and heads that use other features of each other than maps of several strides.
_TIED = (
    'CGNet',
    'DDRNet',
    'DPTHead',
    'ICNet',
    'PIDNet',
    'STDCContextPathNet',
    'TridentResNet',
)
# Learning rate, weight decay and total batch size of the published recipes.
_RECIPES = dict(mmdet=(1e-4, 0.05, 16), mmseg=(6e-5, 0.01, 16), mmpretrain=(1e-3, 0.05, 1024))
_LAYER_DECAY = ('LearningRateDecayOptimizerConstructor', 'LayerDecayOptimizerConstructor')


@dataclass
class Swap:
    """A config with another backbone.

    Attributes:
        cfg: The changed copy of the config.
        notes: Comments by the dotted key of the setting that they explain.
        remarks: Assumptions that the user should check.
    """

    cfg: Config
    notes: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def swap_backbone(cfg: Config, **backbone: Any) -> Swap:
    """Replace the backbone of a model by a FocalNet, and adapt what depends on it.

    These are ``in_channels`` of the neck, or of the heads after the backbone, the normalization of
    the images, the optimizer, and checkpoints of the old backbone.

    Args:
        cfg: The config of any detector, segmentor or classifier.
        **backbone: Arguments of `FocalNet`, such as ``arch='tiny_lrf'``.

    Raises:
        ConfigError: If the model has no backbone that can be replaced.
    """
    swap = Swap(copy.deepcopy(cfg))
    host = _find_host(swap.cfg.model)
    old = host.backbone
    for part in (old, host.wrapper, host.owner.get('decode_head')):
        if type_name(part) in _TIED:
            raise ConfigError(
                f'The backbone {type_name(old)} cannot be replaced: {type_name(part)} uses more '
                'than feature maps of several strides.'
            )
    levels = _measure_or_guess(swap, host)
    if type_name(host.owner.get('neck')) in _RESIZING_NECKS:
        swap.notes[f'{host.path}.neck'] = (
            f'was {type_name(host.owner.neck)}, for maps of one stride'
        )
        host.owner.neck = None
        levels = [(channels, 4 * 2**i) for i, (channels, _) in enumerate(levels)]
    settings = dict(backbone, **_same_settings(levels, old))
    host.replace(ConfigDict(type='FocalNet', **settings))
    swap.notes[host.backbone_path] = f'instead of {type_name(old)}'
    with torch.device('meta'):
        network = FocalNet(**dict(settings, init_cfg=None))
    widths = [network.num_features[stage] for stage in network.out_indices]
    channels = _Channels([c for c, _ in levels], widths, swap.notes, by_index=not host.wrapper)
    for path, module in host.readers():
        channels.replace(module, path)
    _pass_channels_through(host, channels)
    _compare_strides(swap, [4 * 2**stage for stage in network.out_indices], levels)
    _drop_checkpoints(swap, host)
    _normalize_images(swap)
    _use_adamw(swap)
    _import_package(swap.cfg)
    return swap


def pretrained_backbone(arch: str) -> dict[str, Any]:
    """Arguments of a FocalNet for dense prediction with released weights.

    Args:
        arch: A name of `mmfocalnet.models.ARCHS`.

    Returns:
        The architecture, its ``init_cfg``, and for those pretrained on ImageNet-1K focal windows
        that are 6 larger than in pretraining.

    Raises:
        ConfigError: If no weights of this architecture were released.
    """
    settings = find_arch(arch)
    if arch not in CHECKPOINTS:
        raise ConfigError(
            f'No checkpoint of arch {arch!r} was released: choose from {", ".join(CHECKPOINTS)}.'
        )
    windows = {} if settings.get('use_conv_embed') else dict(focal_windows=[9, 9, 9, 9])
    return dict(
        arch=arch, **windows, init_cfg=dict(type='Pretrained', checkpoint=CHECKPOINTS[arch])
    )


@dataclass
class _Host:
    """Where the backbone is in a model.

    Attributes:
        path: Path of the part of the model with neck and heads, such as the detector of a tracker.
        owner: That part.
        wrapper: The part around the backbone, as in BiSeNetV1; None if there is none.
    """

    path: str
    owner: ConfigDict
    wrapper: ConfigDict | None = None

    @property
    def backbone(self) -> ConfigDict:
        return self.owner.backbone if self.wrapper is None else self.wrapper.backbone_cfg

    @property
    def backbone_path(self) -> str:
        return f'{self.path}.backbone' + ('' if self.wrapper is None else '.backbone_cfg')

    def replace(self, backbone: ConfigDict) -> None:
        """Put another backbone in place."""
        if self.wrapper is None:
            self.owner.backbone = backbone
        else:
            self.wrapper.backbone_cfg = backbone

    def readers(self) -> Iterator[tuple[str, ConfigDict]]:
        """The modules that get the backbone's features, with their paths."""
        if self.wrapper is not None:
            yield f'{self.path}.backbone', self.wrapper
        neck = self.owner.get('neck')
        first = neck[0] if isinstance(neck, list) else neck
        if first:
            yield f'{self.path}.neck' + ('.0' if first is not neck else ''), first
        if not first or not any(key.endswith('channels') for key in first):
            heads = [key for key in self.owner if key.endswith('head')]
        else:  # JPU passes features on to auxiliary heads
            heads = ['auxiliary_head'] if type_name(first) == 'JPU' else []
        for key in heads:
            yield from _with_paths(f'{self.path}.{key}', self.owner[key])


def _with_paths(path: str, module: Any) -> Iterator[tuple[str, ConfigDict]]:
    if isinstance(module, (list, tuple)):
        yield from ((f'{path}.{i}', part) for i, part in enumerate(module))
    elif module:
        yield path, module


def _find_host(model: ConfigDict) -> _Host:
    parts = [('model', model)]
    for path, part in parts:
        backbone = part.get('backbone')
        if isinstance(backbone, dict) and 'type' in backbone:
            return _Host(path, part, backbone if 'backbone_cfg' in backbone else None)
        parts += [(f'{path}.{k}', v) for k, v in part.items() if isinstance(v, ConfigDict)]
    raise ConfigError(f'{type_name(model)} has no backbone in its config that can be replaced.')


def _measure_or_guess(swap: Swap, host: _Host) -> list[tuple[int, int]]:
    """Channels and strides of the feature maps of the old backbone."""
    name = type_name(host.backbone)
    try:
        return _measure(host.backbone, swap.cfg.get('default_scope'))
    except Exception as error:  # its package is missing, or it needs other inputs
        reason = f'{name} cannot be run on an image ({type(error).__name__}: {error})'
    for _, module in host.readers():
        channels = module.get('in_channels')
        if isinstance(channels, (list, tuple)) and 1 < len(channels) <= 4:
            strides = (4, 8, 16, 32)[-len(channels) :]
            swap.remarks.append(
                f'{reason}. Its feature maps are assumed to have strides {strides}.'
            )
            return list(zip(channels, strides, strict=True))
    raise ConfigError(f'{reason}, so its feature maps are not known.')


def _measure(backbone: ConfigDict, scope: str | None) -> list[tuple[int, int]]:
    config = copy.deepcopy(backbone)
    config.update(init_cfg=None)
    if 'pretrained' in config:
        config.pretrained = None
    size = config.get('img_size', config.get('pretrain_img_size', 128))
    size = size[0] if isinstance(size, (list, tuple)) else size
    try:
        maps = _run(config, scope, size, 'meta')
    except RuntimeError:  # some read values of tensors, which meta tensors do not have
        maps = _run(config, scope, size, 'cpu')
    return [(m.shape[1], size // m.shape[2]) for m in maps]


def _run(config: ConfigDict, scope: str | None, size: int, device: str) -> list[torch.Tensor]:
    with DefaultScope.overwrite_default_scope(scope), torch.no_grad(), torch.device(device):
        network = MODELS.build(copy.deepcopy(config))
        network.eval()  # returns None in mmdet
        maps = network(torch.zeros(1, config.get('in_channels', 3), size, size))
    return [maps] if isinstance(maps, torch.Tensor) else list(maps)


def _same_settings(levels: list[tuple[int, int]], old: ConfigDict) -> dict[str, Any]:
    """Arguments of FocalNet that follow from the old backbone."""
    settings = {}
    stages = _choose_stages(levels, old)
    if stages != (0, 1, 2, 3):
        settings['out_indices'] = stages
    if old.get('in_channels', 3) != 3:
        settings['in_chans'] = old.in_channels
    if old.get('with_cp'):
        settings['use_checkpoint'] = True
    return settings


def _choose_stages(levels: list[tuple[int, int]], old: ConfigDict) -> tuple[int, ...]:
    """Stages of FocalNet for the feature maps of another backbone.

    They have the same strides. If that has dilated stages (strides 4, 8, 8, 8), the stages at the
    same positions are used, and the features become coarser.
    """
    strides = [stride for _, stride in levels]
    stages = tuple({4: 0, 8: 1, 16: 2, 32: 3}.get(stride, -1) for stride in strides)
    if -1 not in stages and list(stages) == sorted(set(stages)):
        return stages
    indices = tuple(old.get('out_indices', range(len(levels))))
    dilated = strides == sorted(strides) and max(strides) in (8, 16)
    if dilated and len(levels) == 4:
        return (0, 1, 2, 3)
    if dilated and len(indices) == len(levels) and max(indices) < 4:
        return indices
    raise ConfigError(
        f'{type_name(old)} gives feature maps of strides {strides}, FocalNet of 4, 8, 16 and 32.'
    )


@dataclass
class _Channels:
    """The channels of the old and the new feature maps, in order.

    Attributes:
        old: Of the old backbone.
        new: Of FocalNet.
        notes: Filled with comments on changed settings.
        by_index: Whether ``in_index`` of heads selects the backbone's features.
    """

    old: list[int]
    new: list[int]
    notes: dict[str, str]
    by_index: bool

    def replace(self, module: ConfigDict, path: str) -> None:
        """Replace the old channels in a module, and in its parts that select features."""
        for key, value in list(module.items()):
            if isinstance(value, ConfigDict):
                if 'in_index' in value:
                    self.replace(value, f'{path}.{key}')
                continue
            new = value
            if key == 'in_channels':
                new = self._translate(value, module.get('in_index') if self.by_index else None)
            elif key.endswith('in_channels') or ('backbone_cfg' in module and 'channels' in key):
                new = self._translate(value, None)
            if new != value:
                module[key] = new
                self.notes[f'{path}.{key}'] = f'was {value}'

    def _translate(self, value: Any, index: Any) -> Any:
        if isinstance(value, (list, tuple)):
            if list(value) == self.old:  # several levels may have as many channels
                return type(value)(self.new)
            indices = index if isinstance(index, (list, tuple)) else [None] * len(value)
            return type(value)(map(self._translate, value, indices))
        if isinstance(index, int):
            return self.new[index]
        return dict(zip(self.old, self.new, strict=True)).get(value, value)


def _pass_channels_through(host: _Host, channels: _Channels) -> None:
    """Adapt a neck that passes the features on and adds levels (SSDNeck), and its head."""
    neck, head = host.owner.get('neck'), host.owner.get('bbox_head')
    outputs = neck.get('out_channels') if isinstance(neck, dict) else None
    count = len(channels.old)
    if not isinstance(outputs, tuple) or list(outputs[:count]) != channels.old:
        return
    for module, key in ((neck, 'out_channels'), (head, 'in_channels')):
        if module[key] == outputs:
            channels.notes[f'{host.path}.{"neck" if module is neck else "bbox_head"}.{key}'] = (
                f'was {outputs}'
            )
            module[key] = (*channels.new, *outputs[count:])


def _compare_strides(swap: Swap, new: list[int], levels: list[tuple[int, int]]) -> None:
    old = [stride for _, stride in levels]
    if old != new:
        swap.remarks.append(f'The feature maps have strides {new} instead of {old}.')


def _drop_checkpoints(swap: Swap, host: _Host) -> None:
    """Remove checkpoints of the old backbone and of the old model."""
    for owner in (swap.cfg.model, host.owner):
        if owner.get('pretrained'):
            owner.pretrained = None
    if swap.cfg.get('load_from'):
        swap.notes['load_from'] = f'was {swap.cfg.load_from}'
        swap.cfg.load_from = None


def _normalize_images(swap: Swap) -> None:
    """Normalize images as in pretraining."""
    for path, part in _preprocessors(swap.cfg):
        order = 'to_rgb' if 'to_rgb' in part else 'bgr_to_rgb'
        for key, value in dict(_NORMALIZATION, **{order: True}).items():
            if part.get(key) != value:
                swap.notes[f'{path}.{key}'] = f'as in pretraining, was {part.get(key)}'
                part[key] = value


def _preprocessors(cfg: Config) -> Iterator[tuple[str, ConfigDict]]:
    parts = [('model', cfg.model)]
    if 'data_preprocessor' in cfg and 'data_preprocessor' not in cfg.model:
        parts.append(('data_preprocessor', cfg.data_preprocessor))
    for path, part in parts:
        nested = [(f'{path}.{k}', v) for k, v in part.items() if 'preprocessor' in k]
        parts += nested
        if path.endswith('preprocessor') and not nested:
            yield path, part


def _use_adamw(swap: Swap) -> None:
    """Use the published optimizer instead of SGD; keep the AdamW of other recipes."""
    wrapper = swap.cfg.get('optim_wrapper') or {}
    if wrapper.get('constructor') in _LAYER_DECAY:
        wrapper.constructor = 'FocalNetLayerDecayOptimizerConstructor'
        old = wrapper.paramwise_cfg
        rate = old.get('decay_rate', old.get('layer_decay_rate'))
        wrapper.paramwise_cfg = ConfigDict(decay_rate=rate)
    old = type_name(wrapper.get('optimizer'))
    if old in (None, 'AdamW', 'FusedAdamW'):
        return
    lr, decay, batch = _RECIPES.get(swap.cfg.get('default_scope'), _RECIPES['mmdet'])
    wrapper.optimizer = ConfigDict(type='AdamW', lr=lr, weight_decay=decay)
    wrapper.paramwise_cfg = ConfigDict(norm_decay_mult=0.0)
    swap.notes['optim_wrapper.optimizer'] = f'as published for {batch} images per step, was {old}'
    scale = swap.cfg.get('auto_scale_lr')
    if scale and scale.get('base_batch_size') != batch:
        swap.notes['auto_scale_lr.base_batch_size'] = f'was {scale.get("base_batch_size")}'
        scale.base_batch_size = batch


def _import_package(cfg: Config) -> None:
    """Import mmfocalnet in the config, and no packages that are not installed."""
    old = cfg.get('custom_imports') or ConfigDict(imports=[])
    names = [old.imports] if isinstance(old.imports, str) else list(old.imports)
    names = [name for name in names if name != 'mmfocalnet' and find_spec(name.split('.')[0])]
    cfg.custom_imports = ConfigDict(imports=[*names, 'mmfocalnet'], allow_failed_imports=False)
