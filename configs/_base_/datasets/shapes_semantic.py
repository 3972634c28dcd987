# The generated shapes in ADE20K format: 4 shapes and 3 textures, labels start at 1.
_base_ = ['./ade20k.py', './shapes.py']

train_pipeline = [
    dict(type='SeedSample'),
    dict(type='SkipUnreadable', load=dict(type='LoadImageFromFile')),
    dict(type='SkipUnreadable', load=dict(type='LoadAnnotations')),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale_factor=factor, keep_ratio=True) for factor in (0.75, 1.0, 1.25)
]

source = dict(
    type='BaseSegDataset',
    data_root='data/shapes/ade',
    metainfo=dict(
        classes=_base_.things + _base_.stuff,
        palette=_base_.thing_palette + _base_.stuff_palette,
    ),
    reduce_zero_label=True,
    img_suffix='.jpg',
    seg_map_suffix='.png',
)
train_dataloader = dict(**_base_.shapes_loader, dataset=dict(**source, pipeline=train_pipeline))
val_dataloader = dict(**_base_.shapes_loader, dataset=dict(**source, pipeline=test_pipeline))
test_dataloader = val_dataloader
