# COCO boxes and masks with large-scale jitter to 1024x1024.
_base_ = './coco_instance.py'

train_pipeline = [
    dict(type='SeedSample'),
    dict(type='SkipUnreadable', load=dict(type='LoadImageFromFile')),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomResize', scale=(1024, 1024), ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type='RandomCrop',
        crop_type='absolute',
        crop_size=(1024, 1024),
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    # Remove instances that a crop reduces to almost nothing.
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-5, 1e-5), by_mask=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    # The schedules count iterations. With an infinite sampler, a resumed run does not load earlier
    # samples. All images are square, so they are not grouped by aspect ratio.
    sampler=dict(type='SeededInfiniteSampler'),
    batch_sampler=None,
    dataset=dict(pipeline=train_pipeline),
)

# mmdet merges the boxes of several views, but not their masks.
tta_model = None
tta_pipeline = None
