# Swin with the widths and depths of FocalNet.
_base_ = '../../configs/bccd/atss_focalnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        embed_dims=32,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        out_indices=(1, 2, 3),
        drop_path_rate=_base_.model.backbone.drop_path_rate,
    )
)
