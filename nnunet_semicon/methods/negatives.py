"""A contrast without negatives teaches nothing and says nothing: its loss is 0. Such a run is stopped."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nnunet_semicon.errors import UserError
from nnunet_semicon.losses.pairs import Pairs, has_negatives

PATIENCE = 50  # steps in a row without a negative pair before the run stops


class NegativesWatch(nn.Module):
    """Counts the steps in a row in which a contrastive term had no negative pair; a resumed run counts on.

    Args:
        remedies: term, in words -> what to do if it never has one.
    """

    steps: Tensor

    def __init__(self, remedies: Mapping[str, str]) -> None:
        super().__init__()
        self.remedies = dict(remedies)
        self.register_buffer("steps", torch.zeros(len(self.remedies), dtype=torch.int64))

    def count(self, index: int, pairs: Pairs) -> None:
        """Note the pairs that term number ``index`` had in this step, without waiting for the device."""
        self.steps[index] = (self.steps[index] + 1) * ~has_negatives(pairs)

    def stop_if_none(self, step: int) -> None:
        """Look every 50 steps whether a term has had nothing to contrast.

        Raises:
            UserError: names the term and the remedy.
        """
        if step % PATIENCE != PATIENCE - 1:
            return
        for (term, remedy), steps in zip(self.remedies.items(), self.steps.tolist(), strict=True):
            if steps >= PATIENCE:
                raise UserError(
                    f"the contrastive term of {term} has had no negative pair for {steps} steps, so it teaches "
                    f"nothing: {remedy}"
                )
