# Fine-tune the released detector, trained on Objects365 and COCO, on other classes. Write the
# config of your data with this one as the recipe:
#   python tools/new_config.py DATA --recipe configs/dino/focalnet_l_fl4_5scale_finetune.py ...
_base_ = './focalnet_l_fl4_5scale_12e.py'

model = dict(backbone=dict(init_cfg=None))  # load_from has the backbone too
load_from = 'https://huggingface.co/microsoft/focalnet-large-fl4-dino-o365-cocoft/resolve/main/focalnet_large_fl4_o365_finetuned_on_coco.pth'
# Classes with the name of a COCO class start from its weights.
custom_hooks = [dict(type='MatchClassesHook')]
