# RandAugment as published (timm's rand-m9-mstd0.5-inc1) with mmdet's transforms: two of 15
# operations, each with probability 0.5 and magnitude 9 of 10. timm draws the magnitude from a
# normal distribution with deviation 0.5, this config from a uniform one (8.13 to 9.87) with the
# same deviation.
magnitudes = (0.813, 0.987)
mean_bgr = (104, 116, 124)  # of ImageNet, fills the border
to_either_side = (
    dict(  # in both directions, at magnitude 10; a shear of 16.7 degrees is a slope of 0.3
        Rotate=30.0, ShearX=16.7, ShearY=16.7, TranslateX=0.45, TranslateY=0.45
    )
)
weaker = dict(min_mag=1 - 0.9 * magnitudes[1], max_mag=1 - 0.9 * magnitudes[0])
stronger = dict(min_mag=1 + 0.9 * magnitudes[0], max_mag=1 + 0.9 * magnitudes[1])

one_way = [
    *[dict(type=f'mmdet.{name}') for name in ('AutoContrast', 'Equalize', 'Invert')],
    *[
        dict(
            type=f'mmdet.{name}',
            min_mag=maximum * magnitudes[0],
            max_mag=maximum * magnitudes[1],
            img_border_value=mean_bgr,
        )
        for name, maximum in to_either_side.items()
    ],
    dict(type='mmdet.Posterize', min_mag=1.0, max_mag=1.0),
    dict(
        type='mmdet.Solarize',
        min_mag=256 * (1 - magnitudes[1]),
        max_mag=256 * (1 - magnitudes[0]),
    ),
    dict(type='mmdet.SolarizeAdd', min_mag=110 * magnitudes[0], max_mag=110 * magnitudes[1]),
]
two_ways = [
    dict(type=f'mmdet.{name}', **change)
    for name in ('Color', 'Contrast', 'Brightness', 'Sharpness')
    for change in (weaker, stronger)
]
rand_augment = dict(
    type='mmdet.RandAugment',
    # Colour operations have two entries. The others are listed twice to be equally likely.
    aug_space=[[dict(**operation, prob=0.5)] for operation in one_way + one_way + two_ways],
    aug_num=2,
)
