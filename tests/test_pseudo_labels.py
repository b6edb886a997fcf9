"""``semicon evaluate --pseudo-labels``: real predictions of a real checkpoint for the unlabeled cases of its split."""

import pytest
import torch

from nnunet_semicon.cli.main import main
from tests.harness import make_trainer, prepare, run_until
from tests.tiny import read_json, write_json

pytestmark = pytest.mark.usefixtures("forks")  # nnU-Net predicts in processes of its own

SPCON, CONTROL = "nnUNetTrainerSPCon", "nnUNetTrainerSupervisedControl"


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """One finished fold of SP-Con and of the control."""
    copy = prepare(tiny.fresh(tmp_path_factory.mktemp("pseudo")))
    with pytest.MonkeyPatch.context() as monkeypatch:
        copy.use(monkeypatch)
        for name in (SPCON, CONTROL):
            run_until(make_trainer(name, "2d_short"), None, monkeypatch)
    return copy


@pytest.fixture
def evaluate(trained, monkeypatch):
    trained.use(monkeypatch)
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    return lambda *words, trainer=SPCON: main(
        ["evaluate", str(fold_of(trained, trainer)), "--pseudo-labels", "-device", "cpu", "-np", "1", *words]
    )


def fold_of(trained, trainer):
    return trained.results / "Dataset901_Tiny" / f"{trainer}__nnUNetPlans__2d_short" / "fold_0"


def evaluation(trained, weights):
    return read_json(fold_of(trained, SPCON) / f"pseudo_labels_{weights}" / "evaluation.json")


def test_the_unlabeled_cases_of_the_split_are_predicted_and_evaluated(trained, evaluate):
    stale = fold_of(trained, SPCON) / "pseudo_labels_student" / "patient001_frame01.nii.gz"
    stale.parent.mkdir()
    stale.write_bytes(b"of another split")
    assert evaluate() == 0
    (fold,) = read_json(trained.preprocessed_dataset / "splits_final.json")
    measured = [entry["case"] for entry in evaluation(trained, "student")["metric_per_case"]]
    assert measured == sorted(fold["unlabeled"])
    assert not set(measured) & {*fold["train"], *fold["val"]}


def test_the_teacher_is_another_network(trained, evaluate):
    file = fold_of(trained, SPCON) / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    teacher = content["semicon"]["method"]
    for key in [key for key in teacher if key.startswith("teacher.module.")]:
        teacher[key] = torch.zeros_like(teacher[key])  # sees background everywhere
    torch.save(content, file.with_name("checkpoint_blind.pth"))
    assert evaluate("--checkpoint", "checkpoint_blind.pth", "--weights", "teacher") == 0
    for of_class in evaluation(trained, "teacher")["semicon"]["summary"].values():
        assert len(of_class["missing_in_prediction"]) == of_class["cases"]
        assert of_class["mean"]["DSC"] is None
        assert of_class["penalized_mean"]["DSC"] == 0


def test_the_student_of_a_teacher_that_predicts_is_found(trained, evaluate):
    file = fold_of(trained, SPCON) / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    content["semicon"]["student"] = {key: torch.zeros_like(v) for key, v in content["network_weights"].items()}
    torch.save(content, file.with_name("checkpoint_blind.pth"))
    assert evaluate("--checkpoint", "checkpoint_blind.pth", "--weights", "student") == 0
    for of_class in evaluation(trained, "student")["semicon"]["summary"].values():
        assert len(of_class["missing_in_prediction"]) == of_class["cases"]


@pytest.mark.parametrize(
    ("words", "trainer", "sentence"),
    [
        (["--weights", "teacher"], CONTROL, "has no teacher: use --weights student"),
        (["--checkpoint", "checkpoint_best2.pth"], SPCON, "has no checkpoint_best2.pth"),
    ],
)
def test_a_mistake_is_one_sentence(evaluate, capsys, words, trainer, sentence):
    assert evaluate(*words, trainer=trainer) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_without_unlabeled_cases_there_is_nothing_to_measure(trained, evaluate, capsys):
    file = trained.preprocessed_dataset / "splits_final.json"
    before = read_json(file)
    write_json(file, [{"train": fold["train"], "val": fold["val"]} for fold in before])
    try:
        assert evaluate() == 1
    finally:
        write_json(file, before)
    assert "no unlabeled case of fold_0 has a true segmentation" in capsys.readouterr().err
