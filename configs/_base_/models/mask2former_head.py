# The head of Mask2Former, common to mmdet and mmseg: a pixel decoder with deformable attention and
# nine decoder layers with masked attention.
head_channels = 256
relu = dict(type='ReLU', inplace=True)
ffn = dict(embed_dims=head_channels, num_fcs=2, ffn_drop=0.0, act_cfg=relu)
attention = dict(embed_dims=head_channels, num_heads=8, batch_first=True)
position = dict(num_feats=head_channels // 2, normalize=True)

mask2former_head = dict(
    type='Mask2FormerHead',
    strides=[4, 8, 16, 32],
    feat_channels=head_channels,
    out_channels=head_channels,
    num_queries=100,
    num_transformer_feat_level=3,
    pixel_decoder=dict(
        type='mmdet.MSDeformAttnPixelDecoder',
        num_outs=3,
        norm_cfg=dict(type='GN', num_groups=32),
        act_cfg=dict(type='ReLU'),
        encoder=dict(
            num_layers=6,
            layer_cfg=dict(
                self_attn_cfg=dict(**attention, num_levels=3, num_points=4, dropout=0.0),
                ffn_cfg=dict(**ffn, feedforward_channels=1024),
            ),
        ),
        positional_encoding=position,
    ),
    positional_encoding=position,
    transformer_decoder=dict(
        return_intermediate=True,
        num_layers=9,
        layer_cfg=dict(
            self_attn_cfg=attention,
            cross_attn_cfg=attention,
            ffn_cfg=dict(**ffn, feedforward_channels=2048),
        ),
        init_cfg=None,
    ),
    loss_cls=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=False, loss_weight=2.0),
    loss_mask=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True, loss_weight=5.0),
    loss_dice=dict(
        type='mmdet.DiceLoss',
        use_sigmoid=True,
        activate=True,
        naive_dice=True,
        eps=1.0,
        loss_weight=5.0,
    ),
)
mask2former_train_cfg = dict(
    num_points=12544,
    oversample_ratio=3.0,
    importance_sample_ratio=0.75,
    assigner=dict(
        type='mmdet.HungarianAssigner',
        match_costs=[
            dict(type='mmdet.ClassificationCost', weight=2.0),
            dict(type='mmdet.CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
            dict(type='mmdet.DiceCost', weight=5.0, pred_act=True, eps=1.0),
        ],
    ),
    sampler=dict(type='mmdet.MaskPseudoSampler'),
)
