_base_ = './adamw.py'

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    # The released 1x configs have the steps 9 and 11 instead of the usual 8 and 11.
    dict(type='MultiStepLR', begin=0, end=12, milestones=[9, 11], gamma=0.1),
]
