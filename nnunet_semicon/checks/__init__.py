"""Checks of the installation and of a dataset, for ``semicon doctor``: each yields findings with a remedy."""
