"""Checkpoints of other code bases, made ours."""
