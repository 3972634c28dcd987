"""Convert checkpoints: deduce the architecture, write other layouts."""

DESTINATIONS = ('ours', 'timm', 'transformers', 'release')
"""Layouts that `convert` writes."""
