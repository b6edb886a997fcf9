"""Settings that every trainer obeys, the supervised control too."""

from typing import Literal

from nnunet_semicon.configuration.config import Settings, open_setting, setting
from nnunet_semicon.configuration.derived import Derived

Optimizers = Literal["sgd", "adam", "adamw", "radam"]


class RunConfig(Settings):
    """Lengths, rows and optimization of a run; the defaults are nnU-Net's own."""

    num_epochs: int = setting(1000, "epochs of the run", low=1, source="nnU-Net")
    num_iterations_per_epoch: int = setting(250, "training steps per epoch", low=1, source="nnU-Net")
    num_val_iterations_per_epoch: int = setting(50, "validation batches per epoch", low=1, source="nnU-Net")
    save_every: int = setting(50, "epochs between two checkpoint_latest.pth", low=1, source="nnU-Net")
    seed: int | None = setting(None, "seed of network, sampling and augmentation; null: a new one every time", low=0)
    labeled_per_step: int = open_setting(
        "labeled images per training step (all ranks together); null: derived from the batch size", low=1
    )
    unlabeled_per_step: int = open_setting(
        "unlabeled images per training step (all ranks together); null: as many as the labeled ones", low=1
    )
    partitions: int | None = open_setting("groups of slice positions along the slice axis; null: derived", low=2)
    nonlinear: bool = setting(
        True, "strong views also change intensities nonlinearly: random monotone maps and a smooth field"
    )
    decreasing_maps: bool = setting(False, "half of the random monotone maps of strong views invert the contrast")
    cutout: bool = setting(False, "overwrite one random box, up to half of each side, in half of the strong views")
    precision: Literal["float32", "bfloat16"] = setting(
        "float32",
        "number format in the networks on a CPU; losses, weights and checkpoints are float32",
        source="nnU-Net",
    )
    preset: Literal["recommended", "paper"] = setting(
        "recommended", "defaults: what our measurements support, or the values of the method's paper"
    )
    optimizer: Optimizers = setting(
        "sgd", "optimizer of the network (SGD with Nesterov momentum 0.99)", source="nnU-Net"
    )
    learning_rate: float = open_setting("largest learning rate; null: derived from the optimizer", low=0)
    lr_schedule: Literal["poly", "cosine"] = setting("poly", "how the learning rate falls", source="nnU-Net")
    warmup: float = setting(
        0.0, "part of the run over which the learning rate grows", low=0, high=1, source="nnU-Net: none"
    )
    encoder_lr_factor: float = setting(1.0, "learning rate of the encoder, relative to that of the rest", low=0)
    weight_decay: float = setting(3e-5, "weight decay of the optimizer", low=0, source="nnU-Net")
    validate_both: bool = setting(
        False, "validate both student and teacher at the end; without it the one that predicts alone", source="nnU-Net"
    )
    supervised_loss: Literal["dice_ce", "ce"] = setting(
        "dice_ce", "loss of labeled images: Dice and cross-entropy, or cross-entropy alone", source="nnU-Net"
    )


def learning_rate(optimizer: Optimizers) -> Derived:
    """Return the largest learning rate where neither user nor method names one."""
    if optimizer == "sgd":
        return Derived(1e-2, "nnU-Net's own, for SGD")
    return Derived(1e-3, f"usual for {optimizer} and random weights")
