# FocalNet-L with three focal levels, pretrained on ImageNet-22K with windows of 5.
large_fl3 = dict(
    arch='large_fl3',
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_large_lrf_384.pth',
    ),
)
large_channels = [192, 384, 768, 1536]  # of the four stages
