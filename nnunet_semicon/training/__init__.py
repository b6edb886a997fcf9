"""Plumbing: the one train_step, checkpoints, scalars."""
