# Changes that make the head of Mask2Former small enough for the demos.
small_channels = 64
small_attention = dict(embed_dims=small_channels, num_heads=4)
small_ffn = dict(embed_dims=small_channels, feedforward_channels=128)

small_head = dict(
    feat_channels=small_channels,
    out_channels=small_channels,
    num_queries=20,
    pixel_decoder=dict(
        encoder=dict(
            num_layers=2,
            layer_cfg=dict(self_attn_cfg=small_attention, ffn_cfg=small_ffn),
        ),
        positional_encoding=dict(num_feats=small_channels // 2),
    ),
    positional_encoding=dict(num_feats=small_channels // 2),
    transformer_decoder=dict(
        num_layers=3,
        layer_cfg=dict(
            self_attn_cfg=small_attention, cross_attn_cfg=small_attention, ffn_cfg=small_ffn
        ),
    ),
)
