# FocalNet-L pretrained on ImageNet-22K: three focal levels from windows of 5, or four from 3.
release = 'https://github.com/microsoft/FocalNet/releases/download/v1.0.0/'
large_fl3 = dict(
    arch='large_fl3',
    init_cfg=dict(type='Pretrained', checkpoint=release + 'focalnet_large_lrf_384.pth'),
)
large_fl4 = dict(
    arch='large_fl4',
    init_cfg=dict(type='Pretrained', checkpoint=release + 'focalnet_large_lrf_384_fl4.pth'),
)
large_channels = [192, 384, 768, 1536]  # of the four stages
