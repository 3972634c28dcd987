"""Convert checkpoints: deduce the architecture, write other layouts."""
