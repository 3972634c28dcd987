"""FocalNet as an image classifier (Section 4.1 of the paper): average pooling, linear layer."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn import functional as F

from mmfocalnet.arguments import integer, probability
from mmfocalnet.checkpoints import fit_checkpoint, name_as_classifier, read_head
from mmfocalnet.errors import ConfigError
from mmfocalnet.models.focalnet import FocalNet
from mmfocalnet.models.focalnet_arguments import pretrained_options
from mmfocalnet.models.mixup import BatchMix
from mmfocalnet.models.pretrained import load_pretrained
from mmfocalnet.registry import register


@register(MODELS)
class FocalNetClassifier(BaseModel):
    """Image classifier with a FocalNet backbone.

    The features of the last stage, after their output norm, are averaged over the image and mapped
    to the classes by one linear layer. Checkpoints of the released classifiers can be loaded: their
    keys are renamed.

    Args:
        backbone: Config of a `FocalNet` that returns only its last stage.
        num_classes: Number K of classes. Defaults to 1000.
        label_smoothing: Share of each label that is distributed over all classes. Defaults to
            0.1.
        mix: Arguments of `mmfocalnet.models.mixup.BatchMix`. Defaults to None: no mixing.
        data_preprocessor: Config, such as MMEngine's ``ImgDataPreprocessor``. Defaults to None:
            images are not preprocessed.
        init_cfg: None for random weights, or ``dict(type='Pretrained', checkpoint=...)`` to load
            backbone, norm and linear layer of a classifier in any supported layout. To start with
            a new linear layer, set ``init_cfg`` of the backbone instead. Defaults to None.

    Raises:
        ConfigError: If the backbone returns other stages, or an argument is invalid.
    """

    def __init__(
        self,
        backbone: dict,
        num_classes: int = 1000,
        label_smoothing: float = 0.1,
        mix: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        num_classes = integer('num_classes', num_classes, minimum=1)
        label_smoothing = probability('label_smoothing', label_smoothing)
        if not isinstance(mix, (dict, type(None))):
            raise ConfigError(f'mix must be a dict, such as dict(mixup=0.8), or None, got {mix!r}.')
        self.backbone = MODELS.build(backbone)
        _check_last_stage(self.backbone)
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.mix = BatchMix(**mix) if mix else None
        self.head = nn.Linear(self.backbone.num_features[-1], num_classes)
        if init_cfg:
            pretrained_options(init_cfg)
        # MMEngine loads checkpoints for testing and resuming by parameter names.
        self._register_load_state_dict_pre_hook(self._rename)

    def forward(
        self,
        inputs: Tensor,
        data_samples: list[BaseDataElement] | None = None,
        mode: str = 'tensor',
    ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """Classify a batch.

        Args:
            inputs: Images (B, C_in, H, W).
            data_samples: One per image, with ``gt_label`` in training. Predictions are added to
                them. Defaults to None.
            mode: ``'tensor'``, ``'predict'`` or ``'loss'``. Defaults to ``'tensor'``.

        Returns:
            In mode ``'tensor'`` the logits (B, K); in mode ``'predict'`` the samples with
            ``pred_scores`` (K,), which sum to 1, and ``pred_label``; in mode ``'loss'`` the
            loss.

        Raises:
            ConfigError: If the mode is unknown.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode != 'tensor':
            raise ConfigError(f"mode must be 'tensor', 'predict' or 'loss', got {mode!r}.")
        return self._classify(inputs)

    def loss(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> dict[str, Tensor]:
        """Cross entropy of images (B, C_in, H, W), with mixing and label smoothing."""
        targets = torch.stack([sample.gt_label for sample in data_samples])
        if self.mix:
            inputs, targets = self.mix(inputs, targets, self.num_classes)
        logits = self._classify(inputs)
        return {'loss': F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)}

    def predict(
        self, inputs: Tensor, data_samples: list[BaseDataElement] | None = None
    ) -> list[BaseDataElement]:
        """Add scores and the most likely class to the samples of images (B, C_in, H, W)."""
        samples = data_samples or [BaseDataElement() for _ in inputs]
        for sample, scores in zip(samples, self._classify(inputs).softmax(-1), strict=True):
            sample.pred_scores = scores
            sample.pred_label = scores.argmax()
        return samples

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg``, or initialise the head and then the backbone.

        Raises:
            CheckpointError: If the checkpoint does not fit.
        """
        if self.is_init:
            return
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.backbone.init_weights()
        if self.init_cfg:
            options = pretrained_options(self.init_cfg)
            load_pretrained(self.backbone, **options)
            self.load_state_dict(self._read_head(options), strict=False)
            print_log('Loaded the final norm and the linear layer too.', logger='current')
        self.is_init = True

    def check_pretrained(self) -> None:
        """Check that the checkpoint of ``init_cfg`` fits, without changing the model.

        Raises:
            CheckpointError: If it cannot be read or does not fit.
        """
        if self.init_cfg:
            options = pretrained_options(self.init_cfg)
            fit_checkpoint(target=self.backbone.state_dict(), **options)
            self._read_head(options)

    def _read_head(self, options: dict[str, Any]) -> dict[str, Tensor]:
        return read_head(options['checkpoint'], self.state_dict(), self._norm)

    def rename(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Map the parameter names of a released classifier to those of this class."""
        return name_as_classifier(state, self._norm)

    def _rename(self, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        if not prefix:
            # Released files have the weights under "model", which MMEngine does not unwrap.
            weights = state['model'] if isinstance(state.get('model'), dict) else state
            renamed = self.rename(weights)
            state.clear()
            state.update(renamed)

    @property
    def _norm(self) -> str:
        return f'norm{self.backbone.out_indices[0]}'

    def _classify(self, inputs: Tensor) -> Tensor:
        (features,) = self.backbone(inputs)
        return self.head(features.mean((2, 3)))  # [B, C, H, W] -> [B, C] -> [B, K]


def _check_last_stage(backbone: nn.Module) -> None:
    if not isinstance(backbone, FocalNet):
        raise ConfigError(
            f'The backbone of FocalNetClassifier must be a FocalNet, got '
            f"{type(backbone).__name__}: set backbone=dict(type='FocalNet', ...)."
        )
    last = len(backbone.num_features) - 1
    if backbone.out_indices != (last,):
        raise ConfigError(
            'FocalNetClassifier uses only the last stage, but model.backbone.out_indices is '
            f'{list(backbone.out_indices)}: set it to [{last}].'
        )
