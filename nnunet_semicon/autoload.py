"""Makes nnU-Net's own commands find our trainers.

nnU-Net looks trainers up in the folders named by ``nnUNet_extTrainer``. Every nnU-Net process imports torch, and
torch calls the entry points of the group ``torch.backends`` while it is imported; ours adds one folder to that
variable, behind what the user put there. ``NNUNET_SEMICON_AUTOLOAD=0`` turns it off.
"""

import os

VARIABLE = "nnUNet_extTrainer"
SWITCH = "NNUNET_SEMICON_AUTOLOAD"


def trainer_folder() -> str:
    """Return the folder that ``nnUNet_extTrainer`` has to name (absolute path)."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "nnunet_ext")


def register() -> None:
    """Append our trainer folder to ``nnUNet_extTrainer`` of this process; never raises, imports nothing heavy."""
    if os.environ.get(SWITCH, "1").strip().lower() in ("0", "false", "off", "no"):
        return
    folders = [folder for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder.strip()]
    if trainer_folder() not in folders:
        os.environ[VARIABLE] = os.pathsep.join([*folders, trainer_folder()])
