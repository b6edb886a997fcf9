"""How long a run must be before unlabeled scans can pay."""

from nnunet_semicon.configuration.needs import Needs

# Benchmark hip2: Hippocampus, 2 of 175 scans labeled, 16 labeled and 16 unlabeled rows. In a run of 4000 steps Semicon
# passed the best epoch of its control after 750 to 1000 steps. In runs of 1000 steps, whose learning rate falls sooner,
# no method was ahead.
STEPS_BEFORE_UNLABELED_PAYS = 2000


def about_run_length(needs: Needs, num_epochs: int, num_iterations_per_epoch: int) -> str | None:
    """Return a sentence about the length of a run, with a warning where it is too short for unlabeled scans to pay.

    Args:
        needs: of the method with its settings.
        num_epochs: of the run.
        num_iterations_per_epoch: steps of each epoch.

    Returns:
        None for a method without unlabeled scans, and for pre-training: its steps are not among what we measured.
    """
    if needs.views == 0 or needs.stage != "joint":
        return None
    steps = num_epochs * num_iterations_per_epoch
    measured = f"unlabeled scans paid from about {STEPS_BEFORE_UNLABELED_PAYS} steps on in our measurements"
    if steps >= STEPS_BEFORE_UNLABELED_PAYS:
        return f"{measured}; this run has {steps}."
    return (
        f"warning: {measured}, and this run has only {steps} (num_epochs x num_iterations_per_epoch): a shorter one "
        "shows that everything works, not what unlabeled scans bring."
    )
