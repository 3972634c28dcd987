# Custom keys of paramwise_cfg: a tenth of the learning rate for the backbone, no weight decay for
# its norms. MMEngine uses the longest matching key and then ignores norm_decay_mult, so norms are
# listed.
backbone_norm = dict(lr_mult=0.1, decay_mult=0.0)
slow_backbone = {
    'backbone': dict(lr_mult=0.1),
    'backbone.patch_embed.norm': backbone_norm,
    'backbone.norm': backbone_norm,
    'downsample.norm': backbone_norm,
    'modulation.ln': backbone_norm,
    # A stage has at most 28 blocks.
    **{f'blocks.{block}.norm': backbone_norm for block in range(28)},
}
