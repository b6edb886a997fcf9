"""The one module that nnU-Net finds in this folder: it re-exports every trainer of the catalogue.

nnU-Net imports the modules of an external folder under a temporary name and forgets them again. Because the classes
come from the installed package, they keep their identity and can be pickled for spawned workers.
"""

from nnunet_semicon.trainers import *  # noqa: F403
