"""FocalNet, the backbone (Section 3.3 of the paper): blocks, stages, patch embedding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmfocalnet.archs import DEFAULTS, find_arch
from mmfocalnet.arguments import boolean, finite_number, integer, is_integer, is_list, probability
from mmfocalnet.errors import ConfigError
from mmfocalnet.models.focal_modulation import kernel_sizes
from mmfocalnet.models.mixers import build_mixer
from mmfocalnet.models.pretrained import load_pretrained
from mmfocalnet.ops import feed_forward, is_exact_gelu, keep_path, runs_as_it_stands
from mmfocalnet.registry import register, type_name
from mmfocalnet.text import short_repr

# More than any network has, and few enough to be built in a minute.
MAX_BLOCKS = 4096


class Mlp(nn.Module):
    """The feed-forward half of a block: Linear, GELU, Linear.

    Args:
        dim: Number of channels C.
        hidden_dim: Width of the hidden layer.
        drop: Dropout rate after each linear layer. Defaults to 0.
    """

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        if self._is_plain():
            x = feed_forward(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        else:
            x = self.fc2(self.drop(self.act(self.fc1(x))))
        return self.drop(x)

    def _is_plain(self) -> bool:
        layers = (self.fc1, nn.Linear), (self.fc2, nn.Linear), (self.drop, nn.Dropout)
        usual = is_exact_gelu(self.act) and all(runs_as_it_stands(*layer) for layer in layers)
        return usual and not (self.drop.training and self.drop.p > 0)


class FocalNetBlock(nn.Module):
    """One FocalNet block: a token mixer and an MLP, each on a residual branch.

    Args:
        dim: Number of channels C.
        modulation: Further arguments of `FocalModulation` (window, levels, ...); other
            mixers take those that they have.
        mlp_ratio: Hidden width of the MLP as a multiple of C. Defaults to 4.
        drop: Dropout rate of the projection and the MLP. Defaults to 0.
        drop_path: Stochastic depth: probability that a sample skips a branch. Defaults to 0.
        use_postln: Normalise each branch at its end instead of its start (post-norm, the
            22K models). Defaults to False.
        layerscale_value: Initial value of a learned per-channel factor on each branch;
            None leaves the factor out. Defaults to None.
        mixer: Name of the token mixer (`mmfocalnet.models.MIXERS`). Defaults to
            ``'focal_modulation'``.
    """

    def __init__(
        self,
        dim: int,
        modulation: dict[str, Any],
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        use_postln: bool = False,
        layerscale_value: float | None = None,
        mixer: str = 'focal_modulation',
    ) -> None:
        super().__init__()
        self.use_postln = use_postln
        self.norm1 = nn.LayerNorm(dim)
        self.modulation = build_mixer(mixer, dim, dict(modulation, proj_drop=drop))
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.gamma_1 = self.gamma_2 = None
        if layerscale_value is not None:
            self.gamma_1 = nn.Parameter(layerscale_value * torch.ones(dim))
            self.gamma_2 = nn.Parameter(layerscale_value * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        x = x + self._branch(x, self.modulation, self.norm1, self.gamma_1)
        return x + self._branch(x, self.mlp, self.norm2, self.gamma_2)

    def _branch(self, x: Tensor, layer: nn.Module, norm: nn.Module, gamma: Tensor | None) -> Tensor:
        x = norm(layer(x)) if self.use_postln else layer(norm(x))
        return self.drop_path(x if gamma is None else gamma * x)


class PatchEmbed(nn.Module):
    """Cut an image or a feature map into patches and embed each (the downsampling).

    Plain embedding takes patches side by side; the overlapped one ("conv embedding",
    Table 2) a 7x7 kernel at the stem and a 3x3 kernel between stages. The input is padded
    with zeros on the right and bottom to a multiple of the stride.

    Args:
        in_chans: Channels of the input.
        embed_dim: Channels C of the output.
        patch_size: Stride, and kernel size of the plain embedding.
        overlap: Kernel size of the overlapped embedding; None for the plain one.
            Defaults to None.
        norm: Whether to normalise the result. Defaults to True.
    """

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        patch_size: int,
        overlap: int | None = None,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        # The released checkpoints were trained with these paddings (2 for 7x7/4, 1 for
        # 3x3/2); the 3 of the released dense code shifts the stem's samples.
        padding = 0 if overlap is None else (overlap - patch_size + 1) // 2
        self.proj = nn.Conv2d(in_chans, embed_dim, overlap or patch_size, patch_size, padding)
        self.norm = nn.LayerNorm(embed_dim) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Embed patches of stride S.

        Args:
            x: Input (B, C_in, H, W), of any memory layout.

        Returns:
            Features (B, ceil(H / S), ceil(W / S), C).
        """
        bottom, right = (-x.shape[2] % self.patch_size, -x.shape[3] % self.patch_size)
        # A trace records no branches: it pads always, so that it takes other sizes too.
        if torch.jit.is_tracing() or bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        x = self.proj(x).permute(0, 2, 3, 1)  # [B, C, H, W] -> [B, H, W, C]
        return x if self.norm is None else self.norm(x)


class Stage(nn.Module):
    """Blocks at one resolution, and the patch embedding that leads to the next.

    Args:
        blocks: The blocks of the stage.
        downsample: Embedding into the next stage; None for the last one.
        use_checkpoint: Keep only the blocks' inputs for backward and compute the rest
            again there. Defaults to False.
    """

    def __init__(
        self,
        blocks: Iterable[FocalNetBlock],
        downsample: PatchEmbed | None,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C); the caller applies ``downsample``."""
        for block in self.blocks:
            if self.use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(keep_path(block), x, use_reentrant=False)
            else:
                x = block(x)
        return x


@register(MODELS)
class FocalNet(BaseModule):
    """Focal Modulation Network as a backbone for dense prediction.

    Argument and parameter names are those of the published code, so that its configs and
    checkpoints carry over. Whatever ``arch`` gives, an argument given beside it wins.
    A value for all stages may be written once instead of as a list.

    Args:
        arch: Name of an architecture (`mmfocalnet.models.ARCHS`), such as ``'tiny_lrf'``.
            Defaults to None: the arguments' own defaults.
        in_chans: Channels of the input. Defaults to 3.
        patch_size: Stride of the stem. Defaults to 4.
        embed_dim: Channels of the first stage; they double per stage. Defaults to 96.
        depths: Number of blocks per stage; as many stages as numbers.
            Defaults to (2, 2, 6, 2).
        focal_levels: Focal levels L per stage. Defaults to 2.
        focal_windows: Kernel size at the first focal level per stage. Defaults to 9.
        focal_factor: Growth of the kernel size per focal level. Defaults to 2.
        mlp_ratio: Hidden width of the MLPs as a multiple of C. Defaults to 4.
        drop_rate: Dropout rate. Defaults to 0.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0 over
            all blocks. Defaults to 0.2.
        patch_norm: Normalise after the stem. Defaults to True.
        use_conv_embed: Overlapped patch embedding. Defaults to False.
        use_postln: Post-norm blocks. Defaults to False.
        use_layerscale: Learned per-channel factors on the branches. Defaults to False.
        layerscale_value: Their initial value. Defaults to 1e-4.
        use_postln_in_modulation: Normalise inside the modulation. Defaults to False.
        normalize_modulator: Divide the gated context by L + 1. Defaults to False.
        mixer: Token mixer of the blocks (`mmfocalnet.models.MIXERS`), for ablations.
            Defaults to ``'focal_modulation'``.
        modulation: ``'multiply'`` or ``'add'``, as of `FocalModulation`, like the three after
            it. Defaults to ``'multiply'``.
        use_global_context: Whether there is a global context. Defaults to True.
        aggregate: ``'all'`` focal levels or the ``'top'`` one. Defaults to ``'all'``.
        use_gates: Whether contexts have gates. Defaults to True.
        out_indices: Stages to return, each after a LayerNorm of its own (``norm0``, ...).
            Defaults to None: all of them.
        frozen_stages: Freeze the stem and the first ``frozen_stages`` stages; 0 freezes the
            stem alone, -1 nothing. Output norms stay trainable. Defaults to -1.
        use_checkpoint: Activation checkpointing: less memory for more time, same numbers.
            Defaults to False.
        init_cfg: None for random weights, or ``dict(type='Pretrained', checkpoint=...,
            prefix=...)``; see `mmfocalnet.models.load_pretrained`. Defaults to None.

    Raises:
        ConfigError: If an argument does not fit; the sentence names it.
    """

    def __init__(
        self,
        arch: str | None = None,
        *,
        in_chans: int = 3,
        patch_size: int | None = None,
        embed_dim: int | None = None,
        depths: Sequence[int] | None = None,
        focal_levels: int | Sequence[int] | None = None,
        focal_windows: int | Sequence[int] | None = None,
        focal_factor: int = 2,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        patch_norm: bool = True,
        use_conv_embed: bool | None = None,
        use_postln: bool | None = None,
        use_layerscale: bool | None = None,
        layerscale_value: float = 1e-4,
        use_postln_in_modulation: bool | None = None,
        normalize_modulator: bool | None = None,
        mixer: str = 'focal_modulation',
        modulation: str = 'multiply',
        use_global_context: bool = True,
        aggregate: str = 'all',
        use_gates: bool = True,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        use_checkpoint: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        if isinstance(init_cfg, dict) and init_cfg.get('type', '') is None:
            init_cfg = None  # as mmdet's test_robustness.py has it
        super().__init__(init_cfg=init_cfg)
        given = dict(
            patch_size=patch_size,
            embed_dim=embed_dim,
            depths=depths,
            focal_levels=focal_levels,
            focal_windows=focal_windows,
            use_conv_embed=use_conv_embed,
            use_postln=use_postln,
            use_layerscale=use_layerscale,
            use_postln_in_modulation=use_postln_in_modulation,
            normalize_modulator=normalize_modulator,
        )
        cfg = {
            **DEFAULTS,
            **({} if arch is None else find_arch(arch)),
            **{key: value for key, value in given.items() if value is not None},
        }
        depths = _check_depths(cfg['depths'])
        self.num_features = _check_widths(cfg['embed_dim'], len(depths))
        mlp_ratio = _check_mlp_ratio(mlp_ratio, self.num_features[0])
        in_chans = integer('in_chans', in_chans, minimum=1)
        patch_size = integer('patch_size', cfg['patch_size'], minimum=1)
        drop_rate = probability('drop_rate', drop_rate)
        drop_path_rate = probability('drop_path_rate', drop_path_rate)
        layerscale_value = finite_number('layerscale_value', layerscale_value)
        for name in ('use_conv_embed', 'use_postln', 'use_layerscale'):
            cfg[name] = boolean(name, cfg[name])
        levels = _per_stage('focal_levels', cfg['focal_levels'], depths)
        windows = _per_stage('focal_windows', cfg['focal_windows'], depths)
        for window, level in zip(windows, levels, strict=True):
            kernel_sizes(window, level, focal_factor)
        if cfg['use_conv_embed'] and patch_size != 4:
            raise ConfigError(
                'use_conv_embed=True is defined for patch_size=4 only (a 7x7 kernel of stride 4), '
                f'got patch_size={patch_size}.'
            )
        components = dict(
            use_global_context=use_global_context, aggregate=aggregate, use_gates=use_gates
        )
        self.out_indices = _check_out_indices(out_indices, len(depths))
        self.frozen_stages = _check_frozen_stages(frozen_stages, len(depths))

        self.patch_embed = PatchEmbed(
            in_chans,
            self.num_features[0],
            patch_size,
            overlap=7 if cfg['use_conv_embed'] else None,
            norm=boolean('patch_norm', patch_norm),
        )
        self.pos_drop = nn.Dropout(drop_rate)
        drop_paths = iter(torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist())
        use_checkpoint = boolean('use_checkpoint', use_checkpoint)
        self.layers = nn.ModuleList()
        for i, dim in enumerate(self.num_features):
            blocks = [
                FocalNetBlock(
                    dim,
                    modulation=dict(
                        focal_window=windows[i],
                        focal_level=levels[i],
                        focal_factor=focal_factor,
                        use_postln_in_modulation=cfg['use_postln_in_modulation'],
                        normalize_modulator=cfg['normalize_modulator'],
                        modulation=modulation,
                        **components,
                    ),
                    mixer=mixer,
                    mlp_ratio=mlp_ratio,
                    drop=drop_rate,
                    drop_path=next(drop_paths),
                    use_postln=cfg['use_postln'],
                    layerscale_value=layerscale_value if cfg['use_layerscale'] else None,
                )
                for _ in range(depths[i])
            ]
            downsample = None
            if i + 1 < len(depths):
                overlap = 3 if cfg['use_conv_embed'] else None
                downsample = PatchEmbed(dim, 2 * dim, patch_size=2, overlap=overlap)
            self.layers.append(Stage(blocks, downsample, use_checkpoint))
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(self.num_features[i]))
        if init_cfg is not None:
            pretrained_options(init_cfg)
            _check_pretrained_fits(dict(mixer=mixer, **components))
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of the stages in ``out_indices``.

        Args:
            x: Images (B, in_chans, H, W) of any size; padded with zeros on the right and
                bottom to a multiple of the stride at each embedding.

        Returns:
            One feature map (B, C_i, H_i, W_i) per output, in channels-last memory; with the
            default four stages of strides 4, 8, 16 and 32.

        Raises:
            ValueError: If ``x`` has another number of dimensions.
        """
        if x.ndim != 4:  # PyTorch would speak of an index
            raise ValueError(
                f'FocalNet takes images (B, C, H, W), got a tensor of shape {tuple(x.shape)}.'
            )
        x = self.pos_drop(self.patch_embed(x))
        outs = []
        for i, stage in enumerate(self.layers):
            x = stage(x)
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(x)
                outs.append(out.permute(0, 3, 1, 2))  # [B, H, W, C] -> [B, C, H, W]
            if stage.downsample is not None:
                x = stage.downsample(x.permute(0, 3, 1, 2))
        return tuple(outs)

    def init_weights(self) -> None:
        """Load the pretrained weights that ``init_cfg`` names, else draw random ones.

        MMEngine's own initialiser only warns when a kernel does not fit, and would leave it
        random; here everything that is not understood raises.

        Raises:
            ValueError: If ``init_cfg`` is of another type, or the checkpoint does not fit
                (`mmfocalnet.checkpoints.CheckpointError`).
        """
        if self.is_init:
            print_log('FocalNet.init_weights was called twice; nothing done.', 'current')
            return
        self.apply(_init_module)
        if self.init_cfg:
            load_pretrained(self, **pretrained_options(self.init_cfg))
        self.is_init = True

    def train(self, mode: bool = True) -> FocalNet:
        """Set training mode; frozen stages stay in eval mode. Returns self."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [self.patch_embed, self.pos_drop, *self.layers[: self.frozen_stages]]

    def _freeze_stages(self) -> None:
        for module in self._frozen_modules():
            module.eval()
            module.requires_grad_(False)


def pretrained_options(init_cfg: Any) -> dict[str, Any]:
    """Read the arguments of `mmfocalnet.models.load_pretrained` off an ``init_cfg``.

    Args:
        init_cfg: ``dict(type='Pretrained', checkpoint=..., prefix=...)``.

    Returns:
        ``checkpoint`` and, where given, ``prefix``.

    Raises:
        ConfigError: If it is anything else.
    """
    if type_name(init_cfg) not in ('Pretrained', 'PretrainedInit'):
        raise ConfigError(
            f"FocalNet takes init_cfg=None or dict(type='Pretrained', checkpoint=...), "
            f'got {short_repr(init_cfg)}.'
        )
    options = {key: value for key, value in init_cfg.items() if key != 'type'}
    unknown = options.keys() - {'checkpoint', 'prefix', 'map_location'}
    if unknown or 'checkpoint' not in options:
        raise ConfigError(
            f'FocalNet takes checkpoint= and prefix= in init_cfg of type Pretrained, '
            f'got {", ".join(sorted(map(str, options))) or "neither"}.'
        )
    # Weights always go through the CPU and are copied to wherever the model is.
    options.pop('map_location', None)
    return options


def _check_pretrained_fits(settings: dict[str, Any]) -> None:
    """Refuse ``init_cfg`` where weights other than the published operator's are needed."""
    paper = dict(mixer='focal_modulation', use_global_context=True, aggregate='all', use_gates=True)
    changed = [f'{key}={value!r}' for key, value in settings.items() if value != paper[key]]
    if changed:
        raise ConfigError(
            f'init_cfg loads focal modulation as published, and {changed[0]} has other weights: '
            'set init_cfg=None, and load_from to a checkpoint trained with the same settings, '
            'if there is one.'
        )


def _init_module(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_depths(depths: Sequence[int]) -> tuple[int, ...]:
    if not is_list(depths) or not depths:
        raise ConfigError(
            f'depths must list the number of blocks per stage, got {short_repr(depths)}.'
        )
    checked = tuple(integer('depths', depth, minimum=1) for depth in depths)
    integer('The sum of depths', sum(checked), minimum=1, maximum=MAX_BLOCKS)
    return checked


def _check_widths(embed_dim: int, num_stages: int) -> list[int]:
    """Channels of the stages, which double."""
    widest = integer('embed_dim', embed_dim, minimum=1) << (num_stages - 1)
    integer(f'embed_dim * 2**{num_stages - 1}, the width of the last stage,', widest, minimum=1)
    return [int(embed_dim) << stage for stage in range(num_stages)]


def _check_mlp_ratio(mlp_ratio: float, narrowest: int) -> float:
    if int(narrowest * finite_number('mlp_ratio', mlp_ratio)) < 1:
        raise ConfigError(
            f'mlp_ratio must give {narrowest} channels one hidden unit or more, got {mlp_ratio}.'
        )
    return mlp_ratio


def _per_stage(name: str, value: int | Sequence[int], depths: Sequence[int]) -> tuple[int, ...]:
    values = tuple(value) if is_list(value) else (value,) * len(depths)
    if len(values) != len(depths):
        raise ConfigError(
            f'{name} has {len(values)} values but depths has {len(depths)}: give one per stage, '
            f'got {name}={short_repr(list(values))} and depths={short_repr(list(depths))}.'
        )
    return values


def _check_out_indices(out_indices: Sequence[int] | None, num_stages: int) -> tuple[int, ...]:
    if out_indices is None:
        return tuple(range(num_stages))
    given = tuple(out_indices) if is_list(out_indices) else (out_indices,)
    in_range = all(is_integer(index) and 0 <= index < num_stages for index in given)
    if not given or not in_range or sorted(set(given)) != list(given):
        raise ConfigError(
            f'out_indices must be increasing stage numbers from 0 to {num_stages - 1}, '
            f'got {short_repr(out_indices)}.'
        )
    return tuple(map(int, given))


def _check_frozen_stages(frozen_stages: int, num_stages: int) -> int:
    if not is_integer(frozen_stages) or not -1 <= frozen_stages <= num_stages:
        raise ConfigError(
            f'frozen_stages must be from -1 (nothing) to {num_stages} (all), '
            f'got {short_repr(frozen_stages)}.'
        )
    return int(frozen_stages)
