# FocalNet-T with a small (srf) and a large (lrf) receptive field, pretrained on ImageNet-1K.
tiny_srf = dict(
    arch='tiny_srf',
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_tiny_srf.pth',
    ),
)
tiny_lrf = dict(
    arch='tiny_lrf',
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_tiny_lrf.pth',
    ),
)
tiny_channels = [96, 192, 384, 768]  # of the four stages
