"""Mixup and CutMix of the images and labels of a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfocalnet.arguments import finite_number
from mmfocalnet.errors import ConfigError


class BatchMix:
    """Mixup or CutMix of a complete batch, as in the paper's training of classifiers.

    Each batch is mixed with a permutation of itself, by one of the two methods; if both are
    enabled, one is chosen at random per batch. The share lambda that an image keeps is drawn from
    Beta(alpha, alpha) once per batch.

    Args:
        mixup: Alpha of mixup (arXiv:1710.09412), which blends two images. 0 disables it.
            Defaults to 0.8.
        cutmix: Alpha of CutMix (arXiv:1905.04899), which pastes a rectangle of one image into
            the other. 0 disables it. Defaults to 1.
        switch_prob: Probability of CutMix if both are enabled. Defaults to 0.5.

    Raises:
        ConfigError: If both are disabled, or a number is out of range.
    """

    def __init__(self, mixup: float = 0.8, cutmix: float = 1.0, switch_prob: float = 0.5) -> None:
        mixup, cutmix = finite_number('mixup', mixup), finite_number('cutmix', cutmix)
        switch_prob = finite_number('switch_prob', switch_prob)
        if min(mixup, cutmix) < 0 or mixup == cutmix == 0:
            raise ConfigError(
                'mixup and cutmix must be at least 0, and one of them above 0, got '
                f'mixup={mixup} and cutmix={cutmix}. To disable mixing set model.mix=None.'
            )
        if not 0 <= switch_prob <= 1:
            raise ConfigError(f'switch_prob must be from 0 to 1, got {switch_prob}.')
        self.mixup = mixup
        self.cutmix = cutmix
        self.switch_prob = switch_prob

    def __call__(self, images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: Normalised images (B, C, H, W); not modified.
            labels: Their classes (B,).
            num_classes: Number K of classes.

        Returns:
            Mixed images (B, C, H, W), and the share of each class in them (B, K).
        """
        order = torch.randperm(len(images)).to(images.device)
        targets = F.one_hot(labels, num_classes).float()
        if self._cuts():
            images, kept = cut_and_paste(images, images[order], draw_share(self.cutmix))
        else:
            kept = draw_share(self.mixup)
            images = kept * images + (1 - kept) * images[order]
        return images, kept * targets + (1 - kept) * targets[order]

    def _cuts(self) -> bool:
        if self.mixup and self.cutmix:
            return torch.rand(()).item() < self.switch_prob
        return self.cutmix > 0


def draw_share(alpha: float) -> float:
    """Draw lambda from Beta(alpha, alpha)."""
    return torch.distributions.Beta(alpha, alpha).sample().item()


def cut_and_paste(images: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
    """Paste one rectangle of other images into images at the same position.

    Args:
        images: Images (B, C, H, W); not modified.
        others: Images (B, C, H, W) from which the rectangle is taken.
        share: Share of each image to keep. The rectangle has the image's aspect ratio and a
            random centre, and is clipped at the border.

    Returns:
        The images, and the share that each actually keeps.
    """
    height, width = images.shape[2:]
    side = (1 - share) ** 0.5
    top, bottom = _span(height, side)
    left, right = _span(width, side)
    pasted = images.clone()
    pasted[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return pasted, 1 - (bottom - top) * (right - left) / (height * width)


def _span(length: int, side: float) -> tuple[int, int]:
    cut = int(length * side)
    start = int(torch.randint(length, ())) - cut // 2
    return max(start, 0), min(start + cut, length)
