# AdamW as published with Mask2Former for a total batch size of 16: a tenth of the learning rate for
# the backbone, no weight decay for norms and learned embeddings, gradient norm clipped to 0.01.
_base_ = ['./adamw.py', './slow_backbone.py']

embedding = dict(decay_mult=0.0)
optim_wrapper = dict(
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        custom_keys={
            **_base_.slow_backbone,
            'query_embed': embedding,
            'query_feat': embedding,
            'level_embed': embedding,
        },
    ),
)
