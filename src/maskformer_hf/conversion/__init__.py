"""Checkpoints of other code bases: the original's files become ours, and ours become transformers'."""
