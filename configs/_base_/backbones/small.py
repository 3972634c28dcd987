# FocalNet-S with a small (srf) and a large (lrf) receptive field, pretrained on ImageNet-1K.
small_srf = dict(
    arch='small_srf',
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_small_srf.pth',
    ),
)
small_lrf = dict(
    arch='small_lrf',
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_small_lrf.pth',
    ),
)
small_channels = [96, 192, 384, 768]  # of the four stages
