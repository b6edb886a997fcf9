"""Hyper-parameters of every method with a teacher, the moving average of the student (:mod:`..networks.ema`)."""

from typing import Literal

from nnunet_semicon.configuration.config import Settings, setting


class TeacherConfig(Settings):
    """What every teacher has; a method may declare a key again, with a default and a source of its own."""

    predict_with: Literal["student", "teacher"] = setting(
        "student",
        "network that is validated, and whose weights predict: the student, or its moving average",
        source="nnU-Net: the network that is trained",
        before="student",
    )
    ema_decay: float = setting(
        0.99, "decay of the teacher's moving average", low=0, high=1, source="as for Mean Teacher"
    )

    @property
    def predicts_with_teacher(self) -> bool:
        """Whether the teacher is validated and predicts; then the method must have one."""
        return self.predict_with == "teacher"
