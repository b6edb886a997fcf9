"""The catalogue: every trainer name that nnU-Net can find with ``-tr``, and the group it belongs to."""

from collections.abc import Mapping

from nnunet_semicon.methods.bcp import BCP
from nnunet_semicon.methods.cross_supervision import CrossSupervision
from nnunet_semicon.methods.fixmatch import FixMatch
from nnunet_semicon.methods.mcsc import MCSC
from nnunet_semicon.methods.mean_teacher import MeanTeacher
from nnunet_semicon.methods.own_predictions import OwnPredictions
from nnunet_semicon.methods.plgcl import PLGCL
from nnunet_semicon.methods.semicon import Semicon
from nnunet_semicon.methods.sp_con import SPCon
from nnunet_semicon.methods.sp_con_pretrain import SPConPretrain
from nnunet_semicon.methods.supervised import Supervised
from nnunet_semicon.methods.supervised_local import SupervisedLocal
from nnunet_semicon.methods.supervised_local_pretrain import SupervisedLocalPretrain
from nnunet_semicon.methods.supervised_mix import SupervisedMix
from nnunet_semicon.methods.supervised_swin import SupervisedSwin
from nnunet_semicon.methods.unimatch import UniMatch
from nnunet_semicon.training.pretrain_trainer import PretrainTrainer
from nnunet_semicon.training.semi_trainer import SemiTrainer
from nnunet_semicon.training.swin_trainer import SwinTrainer

__all__ = [
    "nnUNetTrainerBCP",
    "nnUNetTrainerCPS",
    "nnUNetTrainerCrossTeaching",
    "nnUNetTrainerFixMatch",
    "nnUNetTrainerMCSC",
    "nnUNetTrainerMeanTeacher",
    "nnUNetTrainerMetaContrastPretrain",
    "nnUNetTrainerPLGCL",
    "nnUNetTrainerSPCon",
    "nnUNetTrainerSPConPretrain",
    "nnUNetTrainerSelfTraining",
    "nnUNetTrainerSemicon",
    "nnUNetTrainerSimCLRPretrain",
    "nnUNetTrainerSupervisedControl",
    "nnUNetTrainerSupervisedLocal",
    "nnUNetTrainerSupervisedLocalPretrain",
    "nnUNetTrainerSupervisedMix",
    "nnUNetTrainerSwinUNet",
    "nnUNetTrainerUniMatch",
]

# title -> trainers, in the order in which users see them; every trainer is in one group
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Recommended": ("nnUNetTrainerSemicon",),
    "The four papers": (
        "nnUNetTrainerSPCon",
        "nnUNetTrainerPLGCL",
        "nnUNetTrainerSupervisedLocal",
        "nnUNetTrainerMCSC",
    ),
    "Baselines": (
        "nnUNetTrainerMeanTeacher",
        "nnUNetTrainerCPS",
        "nnUNetTrainerCrossTeaching",
        "nnUNetTrainerFixMatch",
        "nnUNetTrainerUniMatch",
        "nnUNetTrainerBCP",
        "nnUNetTrainerSelfTraining",
    ),
    "Controls: labeled scans alone": (
        "nnUNetTrainerSupervisedControl",
        "nnUNetTrainerSupervisedMix",
        "nnUNetTrainerSwinUNet",
    ),
    "Pre-training": (
        "nnUNetTrainerSPConPretrain",
        "nnUNetTrainerMetaContrastPretrain",
        "nnUNetTrainerSimCLRPretrain",
        "nnUNetTrainerSupervisedLocalPretrain",
    ),
}


class nnUNetTrainerSemicon(SemiTrainer):
    """Pseudo-labels of a moving average of the network, on unlabeled images with pasted labeled content."""

    method_class = Semicon


class nnUNetTrainerSupervisedControl(SemiTrainer):
    """Labeled scans only: what every method is compared with; bit for bit the stock trainer."""

    method_class = Supervised


class nnUNetTrainerSupervisedMix(SemiTrainer):
    """Labeled scans only, each also changed strongly and mixed with another: the control for the augmentation."""

    method_class = SupervisedMix


class nnUNetTrainerMeanTeacher(SemiTrainer):
    """Unlabeled scans through consistency with a moving average of the network."""

    method_class = MeanTeacher


class nnUNetTrainerFixMatch(SemiTrainer):
    """The network learns under strong intensity changes what it predicts with confidence without them."""

    method_class = FixMatch


class nnUNetTrainerUniMatch(SemiTrainer):
    """FixMatch with two mixed strong views, and with a weak view of which half of the feature channels are dropped."""

    method_class = UniMatch


class nnUNetTrainerBCP(SemiTrainer):
    """Boxes are exchanged between labeled and unlabeled images in both directions; a teacher labels the latter."""

    method_class = BCP


class nnUNetTrainerSelfTraining(SemiTrainer):
    """The network's own hard predictions, flipped and rotated with their images, are labels like others."""

    method_class = OwnPredictions


class nnUNetTrainerCPS(SemiTrainer):
    """Two convolutional networks from different random weights, each taught by the other's predictions."""

    method_class = CrossSupervision
    defaults = {"second_network": "plain_unet", "cross_loss": "cross_entropy"}  # noqa: RUF012


class nnUNetTrainerCrossTeaching(SemiTrainer):
    """The planned network and a Transformer, each taught by the other's predictions."""

    method_class = CrossSupervision


class nnUNetTrainerMCSC(SemiTrainer):
    """The planned network and a Transformer teach each other and contrast their pixels at several scales."""

    method_class = MCSC


class nnUNetTrainerSPCon(SemiTrainer):
    """Mean teacher and self-paced contrast of images that share slice position or patient."""

    method_class = SPCon


class nnUNetTrainerSPConPretrain(PretrainTrainer):
    """Pre-trains the encoder without labels: self-paced contrast of images that share slice position or patient."""

    method_class = SPConPretrain


class nnUNetTrainerMetaContrastPretrain(PretrainTrainer):
    """Pre-trains the encoder without labels: contrast of images that share a meta-label, every pair counts fully."""

    method_class = SPConPretrain
    defaults = {"regularizer": "none"}  # noqa: RUF012


class nnUNetTrainerSimCLRPretrain(PretrainTrainer):
    """Pre-trains the encoder without labels or meta-labels: contrast of single images (SimCLR)."""

    method_class = SPConPretrain
    defaults = {  # noqa: RUF012
        "regularizer": "none",
        "lambda": {"position": 0.0, "patient": 0.0, "self": 1.0, "others": 0.0},
    }


class nnUNetTrainerPLGCL(SemiTrainer):
    """Mean teacher whose pseudo-labels, weighted by their entropy, tell which patches look alike and which do not."""

    method_class = PLGCL


class nnUNetTrainerSupervisedLocal(SemiTrainer):
    """Draws pixels of one class together in the decoder's feature space, beside the segmentation loss."""

    method_class = SupervisedLocal


class nnUNetTrainerSupervisedLocalPretrain(PretrainTrainer):
    """Pre-trains encoder and decoder: pixels of one class are drawn together, on the labeled scans of the fold."""

    method_class = SupervisedLocalPretrain


class nnUNetTrainerSwinUNet(SwinTrainer):
    """Labeled scans only, with a shifted-window Transformer in the place of the planned network."""

    method_class = SupervisedSwin
