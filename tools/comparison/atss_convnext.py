# ConvNeXt with the depths and as many parameters as FocalNet. It needs transformers.
_base_ = '../../configs/bccd/atss_focalnet.py'
custom_imports = dict(imports=['mmfocalnet', 'comparison.transformers_convnext'])  # in tools/

widths = [38, 76, 152, 304]
model = dict(
    backbone=dict(
        _delete_=True,
        type='TransformersConvNeXt',
        hidden_sizes=widths,
        depths=[1, 1, 2, 1],
        drop_path_rate=_base_.model.backbone.drop_path_rate,
        out_indices=(1, 2, 3),
    ),
    neck=dict(in_channels=widths[1:]),
)
