"""Options that make the models of configs/demo train in milliseconds per iteration."""

CHANNELS = '[8,16,32,64]'
BACKBONE = 'model.backbone.embed_dim=8'
ROI_HEADS = [
    'model.neck.out_channels=16',
    'model.rpn_head.in_channels=16',
    'model.rpn_head.feat_channels=16',
    'model.roi_head.bbox_roi_extractor.out_channels=16',
    'model.roi_head.mask_roi_extractor.out_channels=16',
    'model.roi_head.mask_head.in_channels=16',
    'model.roi_head.mask_head.conv_out_channels=16',
]


def box_head(name):
    return [
        f'model.roi_head.{name}.in_channels=16',
        f'model.roi_head.{name}.conv_out_channels=16',
        f'model.roi_head.{name}.fc_out_channels=32',
    ]


MASK_RCNN = [
    BACKBONE,
    f'model.neck.in_channels={CHANNELS}',
    *ROI_HEADS,
    *box_head('bbox_head'),
]
CASCADE_RCNN = [
    BACKBONE,
    f'model.neck.in_channels={CHANNELS}',
    *ROI_HEADS,
    *(option for stage in range(3) for option in box_head(f'bbox_head.{stage}')),
]
# One map of stride 16, as of the configs focalnet_*_iso.
ISOTROPIC = [
    BACKBONE,
    'model.backbone.patch_size=16',
    'model.backbone.depths=[1]',
    'model.backbone.focal_windows=9',
    'model.neck._delete_=True',
    'model.neck.type=SimpleFeaturePyramid',
    'model.neck.in_channels=[8]',
    'model.neck.num_outs=4',
    *ROI_HEADS,
    *box_head('bbox_head'),
]
# Its group norms have 32 groups.
ATSS = [
    BACKBONE,
    'model.neck.in_channels=[16,32,64]',
    'model.neck.out_channels=32',
    'model.bbox_head.in_channels=32',
    'model.bbox_head.feat_channels=32',
]
DINO = [BACKBONE, 'model.neck.in_channels=[16,32,64]']
SPARSE_RCNN = [BACKBONE, f'model.neck.in_channels={CHANNELS}']
UPERNET = [
    BACKBONE,
    f'model.decode_head.in_channels={CHANNELS}',
    'model.decode_head.channels=16',
    'model.auxiliary_head.in_channels=32',
    'model.auxiliary_head.channels=16',
]
MASK2FORMER = [BACKBONE, f'model.panoptic_head.in_channels={CHANNELS}']
MASK2FORMER_SEMANTIC = [
    BACKBONE,
    f'model.decode_head.in_channels={CHANNELS}',
    'model.auxiliary_head.in_channels=32',
]
