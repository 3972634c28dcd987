# The released detector of the 365 classes of Objects365, for predictions. The first of its 366
# logits is not used.
_base_ = './focalnet_l_fl4_5scale_12e.py'

model = dict(bbox_head=dict(num_classes=366))
load_from = 'https://huggingface.co/microsoft/focalnet-large-fl4-dino-o365/resolve/main/focalnet_large_fl4_pretrained_on_o365.pth'
