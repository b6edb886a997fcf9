"""Unlabeled cases, splits, samplers, views and the two-stream loader."""
