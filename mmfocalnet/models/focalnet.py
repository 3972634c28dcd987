"""FocalNet, the backbone (Section 3.3 of the paper): blocks, stages, patch embedding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmfocalnet.compat.tracing import is_exporting
from mmfocalnet.models.focalnet_arguments import (
    FocalNetArguments,
    pretrained_options,
    resolve_arguments,
)
from mmfocalnet.models.layer_norm import normalize
from mmfocalnet.models.mixers import build_mixer
from mmfocalnet.models.pretrained import load_pretrained
from mmfocalnet.ops import embed_patches, feed_forward, is_exact_gelu, is_unmodified, keep_path
from mmfocalnet.registry import register


class Mlp(nn.Module):
    """MLP of a block: Linear, GELU, Linear.

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
        if self.can_fuse():
            x = feed_forward(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        else:
            x = self.fc2(self.drop(self.act(self.fc1(x))))
        return self.drop(x)

    def can_fuse(self) -> bool:
        """Whether `mmfocalnet.ops.feed_forward` computes what the layers compute."""
        layers = (self.fc1, nn.Linear), (self.fc2, nn.Linear), (self.drop, nn.Dropout)
        unmodified = is_exact_gelu(self.act) and all(is_unmodified(*layer) for layer in layers)
        return unmodified and not (self.drop.training and self.drop.p > 0)


class FocalNetBlock(nn.Module):
    """One FocalNet block: a token mixer and an MLP, each on a residual branch.

    Args:
        dim: Number of channels C.
        mixer_settings: Arguments of the token mixer except ``dim`` and ``proj_drop``, such as
            ``focal_window`` and ``focal_level``.
        mlp_ratio: Hidden width of the MLP as a multiple of C. Defaults to 4.
        drop: Dropout rate of the projection and the MLP. Defaults to 0.
        drop_path: Stochastic depth: probability that a sample skips a branch. Defaults to 0.
        use_postln: Normalise each branch at its end instead of its start (post-norm, the
            22K models). Defaults to False.
        layerscale_value: Initial value of the learned factors per channel on each branch;
            None for no factors. Defaults to None.
        mixer: Name of the token mixer (`mmfocalnet.models.MIXERS`). Defaults to
            ``'focal_modulation'``.
    """

    def __init__(
        self,
        dim: int,
        mixer_settings: dict[str, Any],
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
        self.modulation = build_mixer(mixer, dim, dict(mixer_settings, proj_drop=drop))
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

    def _branch(
        self, x: Tensor, layer: nn.Module, norm: nn.LayerNorm, gamma: Tensor | None
    ) -> Tensor:
        x = normalize(norm, layer(x)) if self.use_postln else layer(normalize(norm, x))
        return self.drop_path(x if gamma is None else gamma * x)


class PatchEmbed(nn.Module):
    """Patch embedding: a strided convolution that embeds an image or downsamples a feature map.

    Without ``overlap`` the patches are disjoint. The overlapped embedding ("conv embedding",
    Table 2) has a 7x7 kernel in the stem and 3x3 kernels between stages. The input is padded
    with zeros on the right and bottom to a multiple of the stride.

    Args:
        in_chans: Channels of the input.
        embed_dim: Channels C of the output.
        patch_size: Stride, and kernel size without ``overlap``.
        overlap: Kernel size of the overlapped embedding. Defaults to None: disjoint patches.
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
        # The released checkpoints were trained with padding 2 for 7x7/4 and 1 for 3x3/2. The
        # padding of 3 in the released dense code shifts the stem's samples.
        padding = 0 if overlap is None else (overlap - patch_size + 1) // 2
        self.proj = nn.Conv2d(in_chans, embed_dim, overlap or patch_size, patch_size, padding)
        self.norm = nn.LayerNorm(embed_dim) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Embed patches of stride S.

        Args:
            x: Input (B, C_in, H, W) in any memory format.

        Returns:
            Features (B, ceil(H / S), ceil(W / S), C).
        """
        x = pad_to_multiple(x, self.patch_size)
        if not torch.jit.is_tracing() and self.can_fuse(x.shape[1]):
            x = embed_patches(x, self.proj.weight, self.proj.bias)
        else:
            x = self.proj(x).permute(0, 2, 3, 1)  # [B, C, H, W] -> [B, H, W, C]
        return x if self.norm is None else normalize(self.norm, x)

    def can_fuse(self, channels: int) -> bool:
        """Whether `mmfocalnet.ops.embed_patches` computes what the convolution computes.

        The convolution has the better error message for a wrong number of channels.
        """
        return (
            is_unmodified(self.proj, nn.Conv2d)
            and self.proj.kernel_size == self.proj.stride == (self.patch_size, self.patch_size)
            and self.proj.padding == (0, 0)
            and self.proj.dilation == (1, 1)
            and self.proj.groups == 1
            and self.proj.in_channels == channels
        )


def pad_to_multiple(x: Tensor, divisor: int, value: float = 0.0) -> Tensor:
    """Pad (B, C, H, W) on the right and bottom to multiples of ``divisor``.

    Args:
        x: The input.
        divisor: Divisor of the new height and width.
        value: Value of the padding. Defaults to 0.
    """
    # Rounded up without remainders of negative numbers, whose bounds `torch.export` cannot derive.
    bottom, right = ((size + divisor - 1) // divisor * divisor - size for size in x.shape[2:])
    # Traces and exported programs do not record branches: always pad, so that they accept other
    # sizes.
    if torch.jit.is_tracing() or is_exporting() or bottom or right:
        x = F.pad(x, (0, right, 0, bottom), value=value)
    return x


class Stage(nn.Module):
    """Blocks at one resolution and the patch embedding into the next stage.

    Args:
        blocks: The blocks of the stage.
        downsample: Embedding into the next stage; None for the last one.
        use_checkpoint: Keep only the blocks' inputs for backward and recompute the rest.
            Defaults to False.
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
    checkpoints can be used. Arguments override the values of ``arch``. Values per stage may be
    given once for all stages.

    Args:
        arch: Name of an architecture, such as ``'tiny_lrf'`` (`mmfocalnet.models.ARCHS`).
            Defaults to None: the defaults of the other arguments.
        in_chans: Channels of the input. Defaults to 3.
        patch_size: Stride of the stem. Defaults to 4.
        embed_dim: Channels of the first stage; doubled in each further stage. Defaults to 96.
        depths: Number of blocks of each stage. Defaults to (2, 2, 6, 2).
        focal_levels: Number of focal levels per stage. Defaults to 2.
        focal_windows: Kernel size at the first focal level per stage. Defaults to 9.
        focal_factor: Growth of the kernel size per focal level. Defaults to 2.
        mlp_ratio: Hidden width of the MLPs as a multiple of C. Defaults to 4.
        drop_rate: Dropout rate. Defaults to 0.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 over all
            blocks. Defaults to 0.2.
        patch_norm: Normalise after the stem. Defaults to True.
        use_conv_embed: Overlapped patch embedding. Defaults to False.
        use_postln: Post-norm blocks. Defaults to False.
        use_layerscale: Learned factors per channel on the branches. Defaults to False.
        layerscale_value: Initial value of these factors. Defaults to 1e-4.
        use_postln_in_modulation: Normalise inside the modulation. Defaults to False.
        normalize_modulator: Divide the gated context by L + 1. Defaults to False.
        mixer: Token mixer of the blocks (`mmfocalnet.models.MIXERS`), for ablations.
            Defaults to ``'focal_modulation'``.
        modulation: ``'multiply'`` or ``'add'``; this and the next three arguments are those of
            `FocalModulation`. Defaults to ``'multiply'``.
        use_global_context: Use the global context. Defaults to True.
        aggregate: Sum ``'all'`` focal levels or the ``'top'`` one. Defaults to ``'all'``.
        use_gates: Weight the contexts by gates. Defaults to True.
        out_indices: Stages whose features are returned, each after a separate LayerNorm
            (``norm0``, ...). Defaults to None: all stages.
        frozen_stages: Freeze the stem and the first ``frozen_stages`` stages; 0 freezes only
            the stem, -1 nothing. Output norms stay trainable. Defaults to -1.
        use_checkpoint: Activation checkpointing: less memory, more time, same numbers.
            Defaults to False.
        init_cfg: None for random weights, or ``dict(type='Pretrained', checkpoint=...,
            prefix=...)``; see `mmfocalnet.models.load_pretrained`. Defaults to None.

    Raises:
        ConfigError: If an argument is invalid; the message contains its name and value.
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
        # All constructor arguments by name; must be the first statement.
        given = {k: v for k, v in locals().items() if k not in ('self', '__class__')}
        if isinstance(init_cfg, dict) and init_cfg.get('type', '') is None:
            given['init_cfg'] = None  # dict(type=None, ...), as mmdet's test_robustness.py sets it
        super().__init__(init_cfg=given['init_cfg'])
        args = resolve_arguments(**given)
        self.num_features = list(args.widths)
        self.out_indices = args.out_indices
        self.frozen_stages = args.frozen_stages

        overlap = 7 if args.use_conv_embed else None
        self.patch_embed = PatchEmbed(
            args.in_chans, args.widths[0], args.patch_size, overlap, args.patch_norm
        )
        self.pos_drop = nn.Dropout(args.drop_rate)
        self.layers = nn.ModuleList(_build_stages(args))
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(self.num_features[i]))
        for module in self._frozen_modules():
            module.eval()
            module.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of the stages in ``out_indices``.

        Args:
            x: Images (B, in_chans, H, W) of any size. Each embedding pads with zeros on the
                right and bottom to a multiple of its stride.

        Returns:
            One contiguous feature map (B, C_i, H_i, W_i) per output; with the default four stages
            of strides 4, 8, 16 and 32.

        Raises:
            ValueError: If ``x`` does not have 4 dimensions.
        """
        if x.ndim != 4:
            raise ValueError(f'FocalNet expects images (B, C, H, W), got shape {tuple(x.shape)}.')
        x = self.pos_drop(self.patch_embed(x))
        outs = []
        for i, stage in enumerate(self.layers):
            x = stage(x)
            if i in self.out_indices:
                out = normalize(getattr(self, f'norm{i}'), x)
                # Contiguous, because some heads call `.view`, and on CPUs heads train faster.
                outs.append(out.permute(0, 3, 1, 2).contiguous())  # [B, H, W, C] -> [B, C, H, W]
            if stage.downsample is not None:
                x = stage.downsample(x.permute(0, 3, 1, 2))
        if self.training and torch.is_grad_enabled() and _is_distributed():
            return _JoinedOutputs.apply(*outs)
        return tuple(outs)

    def init_weights(self) -> None:
        """Load the pretrained weights of ``init_cfg``, or draw random weights.

        Unlike MMEngine's initialiser, which only warns about weights that do not fit and leaves
        them random, this raises.

        Raises:
            ConfigError: If ``init_cfg`` is invalid.
            CheckpointError: If the checkpoint cannot be read or does not fit.
        """
        if self.is_init:
            print_log('FocalNet.init_weights was called before: skipped.', 'current')
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


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class _JoinedOutputs(torch.autograd.Function):
    """Identity whose backward pass reaches all outputs if it reaches one.

    DistributedDataParallel waits for the gradient of every parameter in every iteration. Here,
    the norms of outputs that no neck or head reads, such as those below ``start_level`` of an FPN,
    report that they have none.
    """

    @staticmethod
    def forward(ctx: Any, *outs: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # no computation with gradients of zero
        return outs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return grads


def _build_stages(args: FocalNetArguments) -> Iterator[Stage]:
    overlap = 3 if args.use_conv_embed else None
    rates = torch.linspace(0, args.drop_path_rate, sum(args.depths), device='cpu').tolist()
    drop_paths = iter(rates)  # one per block of the network
    for i, (dim, depth) in enumerate(zip(args.widths, args.depths, strict=True)):
        settings = args.block_settings(i)
        blocks = [FocalNetBlock(**settings, drop_path=next(drop_paths)) for _ in range(depth)]
        last = i == len(args.depths) - 1
        downsample = None if last else PatchEmbed(dim, 2 * dim, patch_size=2, overlap=overlap)
        yield Stage(blocks, downsample, args.use_checkpoint)


def _init_module(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
