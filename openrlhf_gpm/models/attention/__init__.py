"""Attention over forests, one file per kernel."""
