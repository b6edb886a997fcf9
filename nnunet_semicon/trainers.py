"""The catalogue: every trainer name that nnU-Net can find with ``-tr``."""

from nnunet_semicon.methods.mean_teacher import MeanTeacher
from nnunet_semicon.methods.sp_con import SPCon
from nnunet_semicon.methods.supervised import Supervised
from nnunet_semicon.training.semi_trainer import SemiTrainer

__all__ = ["nnUNetTrainerMeanTeacher", "nnUNetTrainerSPCon", "nnUNetTrainerSupervisedControl"]


class nnUNetTrainerSupervisedControl(SemiTrainer):
    """Labeled scans only: what every method is compared with; bit for bit the stock trainer."""

    method_class = Supervised


class nnUNetTrainerMeanTeacher(SemiTrainer):
    """Unlabeled scans through consistency with a moving average of the network."""

    method_class = MeanTeacher


class nnUNetTrainerSPCon(SemiTrainer):
    """Mean teacher and self-paced contrast of images that share slice position or patient."""

    method_class = SPCon
