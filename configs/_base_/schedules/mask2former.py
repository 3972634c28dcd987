# AdamW as published with Mask2Former, batch 16 in all: a tenth of the rate for the backbone, no
# decay of norms and learned embeddings, gradients clipped hard.
_base_ = './adamw.py'

backbone_norm = dict(lr_mult=0.1, decay_mult=0.0)
embedding = dict(decay_mult=0.0)
optim_wrapper = dict(
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.1),
            # Of the keys within a name the longest counts, and norm_decay_mult does not.
            'backbone.patch_embed.norm': backbone_norm,
            'backbone.norm': backbone_norm,
            'downsample.norm': backbone_norm,
            'modulation.ln': backbone_norm,
            **{f'blocks.{block}.norm': backbone_norm for block in range(28)},  # the deepest has 28
            'query_embed': embedding,
            'query_feat': embedding,
            'level_embed': embedding,
        },
    ),
)
