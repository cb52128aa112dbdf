"""Checkpoints on disk: open, load, save, convert."""
