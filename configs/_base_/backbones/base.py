# FocalNet-B with a small (srf) and a large (lrf) receptive field, pretrained on ImageNet-1K.
base_srf = dict(
    arch='base_srf',
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_base_srf.pth',
    ),
)
base_lrf = dict(
    arch='base_lrf',
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_base_lrf.pth',
    ),
)
base_channels = [128, 256, 512, 1024]  # of the four stages
