# Mask2Former for COCO instances: 80 things, no stuff.
_base_ = './mask2former_panoptic.py'

classes = dict(num_things_classes=80, num_stuff_classes=0)
padding = _base_.model.data_preprocessor.batch_augments
padding[0].pad_seg = False
model = dict(
    data_preprocessor=dict(pad_seg=False, batch_augments=padding),
    panoptic_head=dict(**classes, loss_cls=dict(class_weight=[1.0] * 80 + [0.1])),
    panoptic_fusion_head=classes,
    test_cfg=dict(panoptic_on=False),
)
