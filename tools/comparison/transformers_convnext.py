"""ConvNeXt, which mmdet lacks, from transformers."""

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from transformers import ConvNextBackbone, ConvNextConfig


@MODELS.register_module()
class TransformersConvNeXt(BaseModule):
    """Backbone with stages of ``hidden_sizes`` channels and ``depths`` blocks."""

    def __init__(self, hidden_sizes, depths, drop_path_rate, out_indices, init_cfg=None):
        super().__init__(init_cfg)
        outputs = [stage + 1 for stage in out_indices]  # transformers counts the stem as 0
        config = ConvNextConfig(
            hidden_sizes=hidden_sizes,
            depths=depths,
            drop_path_rate=drop_path_rate,
            out_indices=outputs,
        )
        self.net = ConvNextBackbone(config)

    def forward(self, x):
        """Map images (B, 3, H, W) to one map (B, C_i, H_i, W_i) per output."""
        return tuple(self.net(x).feature_maps)
