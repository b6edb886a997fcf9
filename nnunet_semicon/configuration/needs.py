"""What a method asks of the trainer."""

from dataclasses import dataclass
from typing import Literal

Stage = Literal["pretrain", "joint"]


@dataclass(frozen=True)
class Needs:
    """What a method asks of the trainer.

    Attributes:
        views: geometries in which the workers show each unlabeled image (0: the method uses none). Intensities stay;
            the method makes strong views of them (``BuildContext.strong``).
        student_views: rows of the student's forward pass per unlabeled image.
        labeled_views: rows of the student's forward pass per labeled image.
        draw_all: the unlabeled stream draws from the labeled training cases too (never their labels).
        sample_scans: draw scans x partitions instead of single images.
        paired: every labeled row belongs to one unlabeled image: a step has as many of them. Not with ``sample_scans``.
        meta: the method reads ``batch.meta``.
        taps: places whose features the student returns (:mod:`nnunet_semicon.networks.taps`).
        perturb: the student drops feature channels of rows that the method names.
        encoder_only: the student's encoder alone runs; there are no logits.
        stage: ``joint`` with the supervised loss, or ``pretrain`` before it.
        second_network: kind of the network that trains beside the student on every row; None: there is none.
    """

    views: int = 0
    student_views: int = 0
    labeled_views: int = 1
    draw_all: bool = False
    sample_scans: bool = False
    paired: bool = False
    meta: bool = False
    taps: tuple[str, ...] = ()
    perturb: bool = False
    encoder_only: bool = False
    stage: Stage = "joint"
    second_network: str | None = None
