"""Many trainings from one file: stages, folds, seeds and grids; each of them is one stock nnU-Net command."""
