"""Writing configs: a detector with FocalNet as its backbone, and a recipe for other data."""
