"""Semi-supervised and contrastive learning for nnU-Net v2.

Importing this package imports neither torch nor nnunetv2, so that ``import torch`` stays as fast as it was
(see :mod:`nnunet_semicon.autoload`).
"""

__version__ = "0.1.0"
