# AdamW as published with Mask2Former for a total batch size of 16: a tenth of the learning rate for
# the backbone, no weight decay for norms and learned embeddings, gradient norm clipped to 0.01.
_base_ = './adamw.py'

backbone_norm = dict(lr_mult=0.1, decay_mult=0.0)
embedding = dict(decay_mult=0.0)
optim_wrapper = dict(
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.1),
            # MMEngine uses the longest matching key and then ignores norm_decay_mult, so norms are
            # listed. A stage has at most 28 blocks.
            'backbone.patch_embed.norm': backbone_norm,
            'backbone.norm': backbone_norm,
            'downsample.norm': backbone_norm,
            'modulation.ln': backbone_norm,
            **{f'blocks.{block}.norm': backbone_norm for block in range(28)},
            'query_embed': embedding,
            'query_feat': embedding,
            'level_embed': embedding,
        },
    ),
)
