"""Converting checkpoints: deducing the architecture and writing other layouts."""
