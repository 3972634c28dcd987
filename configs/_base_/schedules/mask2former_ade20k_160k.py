_base_ = './mask2former.py'

train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, by_epoch=False, begin=0, end=160000)]
