# The generated shapes (tools/make_shapes.py) in ADE20K's layout: 4 shapes and 3 textures.
_base_ = './ade20k.py'

data_root = 'data/shapes/ade'
metainfo = dict(
    classes=('circle', 'square', 'triangle', 'star', 'stripes', 'dots', 'noise'),
    palette=[
        *((230, 57, 70), (69, 123, 230), (255, 190, 11), (42, 157, 80)),
        *((200, 182, 226), (168, 218, 220), (224, 204, 170)),
    ],
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

# Loading is so cheap that worker processes only cost start-up time.
workers = dict(num_workers=0, persistent_workers=False)
dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=metainfo,
    reduce_zero_label=True,
    img_suffix='.jpg',
    seg_map_suffix='.png',
)
train_dataloader = dict(**workers, batch_size=8, dataset=dict(**dataset, pipeline=train_pipeline))
val_dataloader = dict(**workers, batch_size=8, dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
