"""Check of weights to start from: would ``nnUNetv2_train ... -pretrained_weights FILE`` load them?"""

import os
from collections.abc import Iterator

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_semicon.checks.findings import Finding, note, ok, problem
from nnunet_semicon.configuration.plans import refuse_unknown
from nnunet_semicon.errors import UserError
from nnunet_semicon.experiments.weights import misfit, network_in, network_of
from nnunet_semicon.files import read_object_or_none
from nnunet_semicon.workspace import find_plans

PREPARATION = ("spacing", "normalization_schemes")  # of the images: weights fit without them, but expect them
SAME_PLANS = (
    "use weights that were trained with this configuration; to start from those of another dataset, preprocess this "
    "one with its plans (nnUNetv2_move_plans_between_datasets)"
)


def check_weights(name_or_id: str, plans_identifier: str, configuration: str, path: str) -> Iterator[Finding]:
    """Compare the network in a checkpoint with the one that a configuration asks for."""
    place = find_plans(name_or_id, plans_identifier, configuration)
    refuse_unknown(place.plans, configuration)
    description = os.path.join(place.preprocessed, "dataset.json")
    dataset_json = read_object_or_none(description)
    if not dataset_json:
        raise UserError(f"{description} cannot be read: plan and preprocess the dataset again")
    network = network_of(nnUNetTrainer, place.plans, configuration, dataset_json)
    try:
        weights = network_in(path)
    except UserError as error:
        yield problem(str(error), "name another file with --weights")
        return
    reason = misfit(weights, network)
    if reason is not None:
        yield problem(f"the weights do not fit: {reason}", SAME_PLANS)
        return
    yield ok(f"{path} fits {network.what}")
    for key in PREPARATION:
        theirs, ours = weights.configuration.get(key), network.configuration.get(key)
        if weights.configuration and theirs != ours:
            yield note(f"it was trained with {key} {theirs}, this configuration has {ours}: it fits, but may not help")
