"""``predict_with=teacher``: whose weights stock commands find, what is validated, and that training does not notice."""

from pathlib import Path

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_semicon.cli.main import main
from nnunet_semicon.training.checkpoint import predicts_with, weights_of
from tests import ddp
from tests.harness import configure, differing, make_trainer, run_until, started, state_of, step, validate
from tests.tiny import DATASET, PLANS, read_json

CONTROL, MEAN_TEACHER = "nnUNetTrainerSupervisedControl", "nnUNetTrainerMeanTeacher"
SPCON, LOCAL = "nnUNetTrainerSPCon", "nnUNetTrainerSupervisedLocal"
# trainer -> settings with which a teacher that predicts differs from the student, and does nothing else if possible
WITH_TEACHER = {
    CONTROL: {},
    MEAN_TEACHER: {},
    SPCON: {"lambda_reg": 0.0, "queue_size": 0},
    "nnUNetTrainerPLGCL": {"supervised_warmup": 0.0},  # in which its teacher is the student
    LOCAL: {},
    "nnUNetTrainerSemicon": {},
    "nnUNetTrainerBCP": {"supervised_warmup": 0.0},  # the same
}
every_teacher = pytest.mark.parametrize("name", WITH_TEACHER)
either = pytest.mark.parametrize("predict_with", ["student", "teacher"])


def teacher_of(trainer) -> dict[str, torch.Tensor]:
    return trainer.method.networks()["teacher"].state_dict()


def copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def paint(network: torch.nn.Module, label: int) -> None:
    """Let a network predict one class everywhere."""
    layer = network.decoder.seg_layers[-1]
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.nn.functional.one_hot(torch.tensor(label), len(layer.bias)))


def painted(folder: Path) -> set[int]:
    """The classes that were predicted, from nnU-Net's summary of a validation."""
    summary = read_json(folder / "validation" / "summary.json")
    counts = [case["metrics"] for case in summary["metric_per_case"]]
    return {label for label in (1, 2) for metrics in counts if metrics[str(label)]["n_pred"] > 0}


# --- checkpoints -------------------------------------------------------------------------------------------------


@every_teacher
def test_stock_weights_are_the_teachers_and_training_goes_on_from_the_student(training, tmp_path, name):
    configure(training, "teach", "2d_short", predict_with="teacher", **WITH_TEACHER[name])
    trainer = started(name, "teach")
    step(trainer)
    step(trainer)
    before, teacher = state_of(trainer), copied(teacher_of(trainer))
    trainer.save_checkpoint(str(tmp_path / "saved.pth"))
    assert differing(before, state_of(trainer)) == []

    stored = torch.load(tmp_path / "saved.pth", weights_only=False)
    student = stored["semicon"]["student"]
    assert differing(stored["network_weights"], teacher) == []
    assert differing(student, trainer.plain_network.state_dict()) == []
    assert differing(student, teacher), "the comparison compares nothing"
    assert predicts_with(stored) == "teacher"
    assert differing(weights_of(stored, "student"), student) == []
    assert differing(weights_of(stored, "teacher"), teacher) == []

    resumed = make_trainer(name, "teach", continue_training=True)
    resumed.load_checkpoint(str(tmp_path / "saved.pth"))
    assert differing(before, state_of(resumed)) == []


def test_the_teachers_weights_are_stored_once(training, tmp_path):
    sizes = {}
    for who in ("student", "teacher"):
        configure(training, who, "2d_short", predict_with=who)
        trainer = started(MEAN_TEACHER, who)
        step(trainer)
        trainer.save_checkpoint(str(tmp_path / who))
        sizes[who] = (tmp_path / who).stat().st_size
    assert sizes["teacher"] < 1.05 * sizes["student"]


@either
def test_a_control_that_predicts_itself_has_no_teacher(training, tmp_path, predict_with):
    configure(training, "own", "2d_short", predict_with=predict_with)
    trainer = started(CONTROL, "own")
    trainer.save_checkpoint(str(tmp_path / "saved.pth"))
    stored = torch.load(tmp_path / "saved.pth", weights_only=False)
    has_teacher = predict_with == "teacher"
    assert bool(stored["semicon"]["method"]) == bool(stored["semicon"]["networks"]) == has_teacher
    assert ("student" in stored["semicon"]) == has_teacher
    assert predicts_with(stored) == predict_with
    if not has_teacher:
        with pytest.raises(KeyError):
            weights_of(stored, "teacher")


@pytest.mark.parametrize("name", [CONTROL, MEAN_TEACHER])
def test_resumed_equals_uninterrupted_and_who_predicts_changes_no_training(training, monkeypatch, name):
    for who in ("student", "teacher"):
        configure(training, who, "2d_short", num_epochs=3, save_every=2, predict_with=who)
    usual = state_of(run_until(make_trainer(name, "student"), None, monkeypatch))
    whole = state_of(run_until(make_trainer(name, "teacher"), None, monkeypatch))
    assert differing(usual, {key: whole[key] for key in usual}) == []

    run_until(make_trainer(name, "teacher"), 2, monkeypatch)
    resumed = make_trainer(name, "teacher", continue_training=True)
    resumed.load_checkpoint(f"{resumed.output_folder}/checkpoint_latest.pth")
    halfway = state_of(resumed)
    run_until(resumed, None, monkeypatch)
    assert differing(whole, state_of(resumed)) == []
    assert differing(whole, halfway), "the comparison compares nothing"
    for file in ("checkpoint_best.pth", "checkpoint_final.pth"):
        stored = torch.load(f"{resumed.output_folder}/{file}", weights_only=False)
        assert differing(stored["network_weights"], weights_of(stored, "teacher")) == []
        assert differing(stored["network_weights"], weights_of(stored, "student"))


def test_a_checkpoint_without_these_keys_predicts_with_the_student(training, tmp_path):
    trainer = started(MEAN_TEACHER, "2d_short")
    step(trainer)
    path = str(tmp_path / "earlier.pth")
    trainer.save_checkpoint(path)
    stored = torch.load(path, weights_only=False)
    for key in ("predict_with", "validate_both"):
        del stored["semicon"]["settings"][key]
    torch.save(stored, path)
    resumed = make_trainer(MEAN_TEACHER, "2d_short", continue_training=True)
    resumed.load_checkpoint(path)
    assert differing(state_of(trainer), state_of(resumed)) == []

    configure(training, "teach", "2d_short", predict_with="teacher")
    with pytest.raises(SystemExit, match=r"predict_with was student and is now teacher.*--set predict_with=student"):
        make_trainer(MEAN_TEACHER, "teach", continue_training=True).load_checkpoint(path)


@pytest.mark.parametrize("name", [SPCON, LOCAL])
def test_a_teacher_that_only_predicts_costs_no_forward_pass(training, name):
    configure(training, "teach", "2d_short", predict_with="teacher", **WITH_TEACHER[name])
    trainer = started(name, "teach")
    calls = []
    trainer.method.teacher.register_forward_hook(lambda *_: calls.append(1))
    start = copied(teacher_of(trainer))
    step(trainer)
    assert not calls
    assert differing(start, teacher_of(trainer)), "it is moved all the same"


# --- validation during the training ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "predict_with"),
    [(MEAN_TEACHER, "student"), *((name, "teacher") for name in WITH_TEACHER)],
)
def test_online_dice_is_that_of_the_weights_that_predict(training, name, predict_with):
    configure(training, "teach", "2d_short", predict_with=predict_with)
    trainer = started(name, "teach")
    step(trainer)
    teacher = trainer.method.networks()["teacher"]
    with torch.no_grad():  # otherwise it would still be almost the student
        for parameter in teacher.parameters():
            parameter.mul_(1.3).add_(0.01)
    before = state_of(trainer)
    trainer.on_validation_epoch_start()
    batch = next(trainer.dataloader_val)
    with torch.no_grad():
        found = trainer.validation_step(batch)
        predictor = teacher if predict_with == "teacher" else trainer.plain_network
        other = trainer.plain_network if predict_with == "teacher" else teacher
        segmented, differently = (finest(network, batch["data"]).argmax(1) for network in (predictor, other))
    assert differing(before, state_of(trainer)) == []
    truth = batch["target"][0][:, 0]
    for index, label in enumerate((1, 2)):
        ours, true = segmented == label, truth == label
        assert found["tp_hard"][index] == (ours & true).sum()
        assert found["fp_hard"][index] == (ours & ~true).sum()
        assert found["fn_hard"][index] == (~ours & true).sum()
    assert not torch.equal(segmented, differently), "the comparison compares nothing"


def finest(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    logits = network(images)
    return logits[0] if isinstance(logits, list) else logits


def test_an_error_in_a_validation_step_leaves_the_student_in_place(training):
    configure(training, "teach", "2d_short", predict_with="teacher")
    trainer = started(MEAN_TEACHER, "teach")
    step(trainer)
    step(trainer)  # after the first one the teacher is the student
    before = state_of(trainer)
    batch = next(trainer.dataloader_val)
    with pytest.raises(RuntimeError, match="channels"):
        trainer.validation_step({**batch, "data": batch["data"].repeat(1, 7, 1, 1)})
    assert differing(before, state_of(trainer)) == []


# --- validation at the end ---------------------------------------------------------------------------------------


@pytest.fixture
def validated(training, monkeypatch):
    """Returns the fold folder of Mean Teacher after ``--val``; its student sees class 1 everywhere, its teacher 2."""

    def run(**values) -> Path:
        settings = {"predict_with": values["predict_with"]}
        configure(training, "teach", "2d_short", **settings)
        trainer = run_until(make_trainer(MEAN_TEACHER, "teach"), None, monkeypatch)
        paint(trainer.plain_network, 1)
        paint(trainer.method.teacher.module, 2)
        trainer.current_epoch -= 1
        trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
        configure(training, "teach", "2d_short", **values)  # asked for after the training
        again = make_trainer(MEAN_TEACHER, "teach", continue_training=True)
        again.load_checkpoint(f"{again.output_folder}/checkpoint_final.pth")
        before = state_of(again)
        validate(again)
        assert differing(before, state_of(again)) == []
        return Path(again.output_folder)

    return run


def export(tmp_path: Path, network: str) -> Path:
    words = ["-d", "901", "-c", "teach", "-tr", MEAN_TEACHER, "--network", network]
    assert main(["export", *words, "-o", str(tmp_path / network)]) == 0
    return tmp_path / network / DATASET / f"nnUNetTrainer__{PLANS}__teach"


def predicted(model: Path) -> torch.Tensor:
    """Logits of an image, by the stock predictor."""
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    return predictor.predict_sliding_window_return_logits(torch.linspace(-1, 1, 40 * 40).reshape(1, 1, 40, 40))


@either
def test_both_are_validated_in_folders_of_their_own_and_exported_with_them(validated, tmp_path, predict_with):
    fold = validated(predict_with=predict_with, validate_both=True)
    student, teacher = (fold, fold / "teacher") if predict_with == "student" else (fold / "student", fold)
    assert painted(student) == {1}
    assert painted(teacher) == {2}

    models = {network: export(tmp_path, network) for network in ("student", "teacher")}
    for network, folder in (("student", student), ("teacher", teacher)):
        summary = models[network] / "fold_0" / "validation" / "summary.json"
        assert summary.read_text() == (folder / "validation" / "summary.json").read_text()
    stock = predicted(fold.parent)
    assert torch.equal(stock, predicted(models[predict_with]))
    (other,) = {"student", "teacher"} - {predict_with}
    assert not torch.equal(stock, predicted(models[other]))


@either
def test_one_is_validated_where_nobody_asks_for_both(validated, tmp_path, predict_with):
    fold = validated(predict_with=predict_with)
    assert painted(fold) == ({1} if predict_with == "student" else {2})
    assert not (fold / "student").exists()
    assert not (fold / "teacher").exists()
    (other,) = {"student", "teacher"} - {predict_with}
    summary = export(tmp_path, other) / "fold_0" / "validation" / "summary.json"
    assert "no validation was run with these weights" in summary.read_text()


@pytest.mark.parametrize("fails_at", [1, 2])
@either
def test_an_error_in_the_final_validation_leaves_everything_in_place(training, monkeypatch, predict_with, fails_at):
    configure(training, "teach", "2d_short", predict_with=predict_with, validate_both=True)
    trainer = started(MEAN_TEACHER, "teach")
    step(trainer)
    step(trainer)  # after the first one the teacher is the student
    before, kept, calls = state_of(trainer), (trainer.network, trainer.output_folder, trainer.logger), []

    def fail(self, save_probabilities=False):
        calls.append(self.output_folder)
        if len(calls) == fails_at:
            raise RuntimeError("disk full")

    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        trainer.perform_actual_validation()
    assert differing(before, state_of(trainer)) == []
    assert (trainer.network, trainer.output_folder, trainer.logger) == kept


def test_keys_of_loggers_name_the_other_network(training, monkeypatch):
    configure(training, "teach", "2d_short", predict_with="teacher", validate_both=True)
    trainer = run_until(make_trainer(CONTROL, "teach"), None, monkeypatch)
    logged = []
    monkeypatch.setattr(trainer.logger, "log_summary", lambda key, _: logged.append(key))
    validate(trainer)
    keys = ["final_val/class_1_dice", "final_val/class_2_dice", "final_val/foreground_dice"]
    assert logged == [*keys, *(f"student/{key}" for key in keys)]


@pytest.mark.parametrize(
    ("name", "unused"),
    [(CONTROL, "validate_both"), ("nnUNetTrainerCPS", "predict_with, ema_decay, validate_both"), (MEAN_TEACHER, "")],
)
def test_without_a_teacher_its_keys_are_listed_as_unused(training, name, unused):
    configure(training, "both", "2d_short", predict_with="student", ema_decay=0.9, validate_both=True)
    trainer = make_trainer(name, "both")
    trainer.initialize()
    lines = Path(trainer.log_file).read_text().splitlines()
    said = [line for line in lines if line.startswith("not used by")]
    assert said == ([f"not used by {name}: {unused} "] if unused else [])  # nnU-Net ends every word with a blank


def test_two_processes_have_one_teacher_and_validate_both(training, tmp_path):
    configure(training, "teach", "2d_short", predict_with="teacher", validate_both=True)
    ranks = ddp.train(CONTROL, "teach", steps=2, validate=True)
    assert any(key.startswith("method.teacher.") for key in ranks[0]["state"])
    assert differing(ranks[0]["state"], ranks[1]["state"]) == []
    fold = tmp_path / "results" / DATASET / f"{CONTROL}__{PLANS}__teach" / "fold_0"
    for folder in (fold, fold / "student"):
        assert len(read_json(folder / "validation" / "summary.json")["metric_per_case"]) == ddp.WORLD
