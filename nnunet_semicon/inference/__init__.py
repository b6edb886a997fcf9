"""Trained models: predictions with them, and copies of them for stock nnU-Net."""
