"""Consistency between a student and a teacher.

    L_MT = 1/(|D_u| |Omega|) sum_x sum_{i in Omega} sum_c ( p^t_ic(x) - p^s_ic(x) )^2        (SP-Con supplement, eq. 3)

    L_Reg = -1/(|D_u| |Omega|) sum_x sum_{i in Omega} sum_c p^t_ic(x) log p^s_ic(x)          (PLGCL poster, step 4)

(Mean Teacher: Tarvainen & Valpola, NeurIPS 2017.) p^s, p^t: probabilities of student and teacher, from
``student_logits`` and ``teacher_logits``; Omega: the pixels or voxels of an image; c: classes. The mean is over pixels,
the sum over classes.

Deviations: none for softmax. Region-based heads (sigmoid, overlapping regions) are not in the papers: the same sum,
over regions; the cross-entropy of a region is that of two classes. The teacher is a constant here, whatever the caller
does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_semicon.losses.precision import at_least_float32


def softmax_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over pixels of the squared distance between two class distributions.

    Args:
        student_logits: (B, C, *S), any floating dtype, any number of spatial axes.
        teacher_logits: (B, C, *S); receives no gradient.

    Returns:
        0-dim float32 (float64 for float64 input) in [0, 2]; a zero connected to the graph for an empty batch.

    Raises:
        ValueError: the shapes differ.
    """
    _require_equal_shapes(student_logits, teacher_logits)
    student = torch.softmax(at_least_float32(student_logits), dim=1)
    teacher = torch.softmax(at_least_float32(teacher_logits.detach()), dim=1)
    return _mean_squared_distance(student, teacher)


def sigmoid_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over pixels of the squared distance between two vectors of region probabilities.

    Args:
        student_logits: (B, R, *S), any floating dtype, any number of spatial axes.
        teacher_logits: (B, R, *S); receives no gradient.

    Returns:
        0-dim float32 (float64 for float64 input) in [0, R]; a zero connected to the graph for an empty batch.

    Raises:
        ValueError: the shapes differ.
    """
    _require_equal_shapes(student_logits, teacher_logits)
    student = torch.sigmoid(at_least_float32(student_logits))
    teacher = torch.sigmoid(at_least_float32(teacher_logits.detach()))
    return _mean_squared_distance(student, teacher)


def softmax_cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over pixels of the cross-entropy of the student's class distribution with the teacher's.

    Args:
        student_logits: (B, C, *S), any floating dtype, any number of spatial axes.
        teacher_logits: (B, C, *S); receives no gradient.

    Returns:
        0-dim float32 (float64 for float64 input) >= 0; a zero connected to the graph for an empty batch.

    Raises:
        ValueError: the shapes differ.
    """
    _require_equal_shapes(student_logits, teacher_logits)
    target = torch.softmax(at_least_float32(teacher_logits.detach()), dim=1)
    return _mean_over_pixels(-target * torch.log_softmax(at_least_float32(student_logits), dim=1))


def sigmoid_cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over pixels of the cross-entropy of the student's region probabilities with the teacher's, over regions.

    Args:
        student_logits: (B, R, *S), any floating dtype, any number of spatial axes.
        teacher_logits: (B, R, *S); receives no gradient.

    Returns:
        0-dim float32 (float64 for float64 input) >= 0; a zero connected to the graph for an empty batch.

    Raises:
        ValueError: the shapes differ.
    """
    _require_equal_shapes(student_logits, teacher_logits)
    target = torch.sigmoid(at_least_float32(teacher_logits.detach()))
    student = at_least_float32(student_logits)
    return _mean_over_pixels(-target * F.logsigmoid(student) - (1 - target) * F.logsigmoid(-student))


def _require_equal_shapes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Refuse what would broadcast silently."""
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student_logits and teacher_logits must have the same shape, "
            f"got {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )


def _mean_squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    return _mean_over_pixels((student - teacher).square())


def _mean_over_pixels(values: Tensor) -> Tensor:
    """Sum over axis 1, mean over all others; (B, C, *S) -> 0-dim."""
    per_pixel = values.sum(dim=1)
    return per_pixel.sum() / max(per_pixel.numel(), 1)
