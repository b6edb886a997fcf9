"""The catalogue: every trainer name that nnU-Net can find with ``-tr``."""

__all__: list[str] = []
