"""From photos and videos to segments: a file a job.

This file imports nothing, so that the command line can read a file of this package without PyTorch.
"""
