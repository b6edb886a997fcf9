"""``semicon sweep``: the file, the trainings, their states and commands, the launchers; weights that do not fit."""

import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from nnunet_semicon.catalogue import check_settings, find_trainer
from nnunet_semicon.checks.findings import survived
from nnunet_semicon.checks.sweep import prepare as prepared_plan
from nnunet_semicon.checks.weights import check_weights
from nnunet_semicon.cli.main import main
from nnunet_semicon.errors import UserError
from nnunet_semicon.experiments.cluster import Cluster, make_executor
from nnunet_semicon.experiments.file import Measure, PlanStep, read_sweep
from nnunet_semicon.experiments.local import State, run_all
from nnunet_semicon.experiments.plan import FINAL, LATEST, LOG, SUMMARY, Plan, Standing
from nnunet_semicon.experiments.planning import scaled
from nnunet_semicon.experiments.records import epoch_seconds
from nnunet_semicon.experiments.run import shared, usable_cores
from nnunet_semicon.experiments.trainings import make_trainings
from nnunet_semicon.experiments.variants import nested
from nnunet_semicon.experiments.weights import fingerprint
from nnunet_semicon.processor import has_bfloat16
from tests.harness import configure, make_trainer, prepare
from tests.tiny import DATASET, PLANS, Tiny, command, read_json, write_json, write_raw

DOCS = Path(__file__).parent.parent / "docs" / "sweeps"
TEACHER, CONTROL = "nnUNetTrainerMeanTeacher", "nnUNetTrainerSupervisedControl"


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def stages(**stages) -> str:
    """A sweep file with folds and seeds; each stage is what stands in its braces."""
    lines = "\n".join(f"  {name}: {{trainer: {CONTROL}, configuration: 2d, {text}}}" for name, text in stages.items())
    return f"dataset: 901\nfolds: [0]\nseeds: [0, 1]\nstages:\n{lines}\n"


def refusal(action, *args) -> str:
    with pytest.raises(UserError) as error:
        action(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- the file ----------------------------------------------------------------------------------------------------


def test_what_the_file_says(tmp_path):
    sweep = read_sweep(
        write(
            tmp_path,
            """
            dataset: 027
            folds: [2, all]
            seeds: 3
            set: {num_epochs: 6, temperature: 1e-1, lambda: {patient: 0.1}}
            stages:
              a: {trainer: A, configuration: 2d, set: {num_epochs: 7, lambda.phase: 1}, grid: {temperature: [1, 2]}}
              b: {trainer: B, configuration: 3d_fullres, folds: 1, seeds: null, weights: w/x.pth}
              c: {trainer: C, configuration: 2d, from: a}
            """,
        )
    )
    assert (sweep.dataset, sweep.plans, sweep.device) == ("27", "nnUNetPlans", None)
    a, b, c = sweep.stages.values()
    assert dict(a.set) == {"num_epochs": 7, "lambda.patient": 0.1, "lambda.phase": 1}, "the grid has the temperature"
    assert dict(a.grid) == {"temperature": [1, 2]}
    assert (a.folds, a.seeds) == ((2, "all"), (3,))
    assert (b.folds, b.seeds, b.start, b.weights) == ((1,), (None,), None, tmp_path / "w" / "x.pth")
    assert (c.start, c.weights) == ("a", None)
    assert (sweep.plan, sweep.precision, sweep.results) == (None, None, tmp_path / "sweep_results")
    assert {stage.measure for stage in (a, b, c)} == {None}


def test_numbers_of_yaml_1_2_are_numbers_and_dates_are_texts(tmp_path):
    text = stages(a="set: {x: 1e-1, y: -2E3, z: 2020-01-01, w: 0.5}")
    assert read_sweep(write(tmp_path, text)).stages["a"].set == {"x": 0.1, "y": -2000.0, "z": "2020-01-01", "w": 0.5}


def test_what_is_planned_and_measured(tmp_path):
    head = "plan: {name: P, spacing: [5, 4, 4], widths: 0.5, arguments: {gpu_memory_target: 4}}\nresults: out\n"
    measured = "measure: {networks: [student, teacher]}\n"
    sweep = read_sweep(
        write(tmp_path, head + measured + stages(a="", b="measure: null", c="measure: {networks: second}"))
    )
    assert (sweep.plans, sweep.results) == ("P", tmp_path / "out")
    assert sweep.plan == PlanStep("P", "ExperimentPlanner", {"gpu_memory_target": 4}, (5.0, 4.0, 4.0), 0.5, ("2d",))
    a, b, c = sweep.stages.values()
    assert (a.measure, b.measure, c.measure) == (Measure(("student", "teacher")), None, Measure(("second",)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: 1\nstages: {a: {trainer: [}}", "sweep.yaml, line 2 is not YAML"),
        ("dataset: 1\nfolds: [0]\ndataset: 2", "sweep.yaml, line 3 is not YAML ('dataset' is there twice)"),
        (stages(a="") + f"  a: {{trainer: {CONTROL}, configuration: 2d}}", "line 6 is not YAML ('a' is there twice)"),
        ("- dataset", "is no sweep"),
        ("dataset: 1\nstage: {}", "unknown key 'stage' in"),
        ("dataset: 1\nstage: {}", "did you mean 'stages'?"),
        ("stages: {a: {}}", "has no 'dataset'"),
        ("dataset: [1]\nstages: {a: {}}", "'dataset' in"),
        ("dataset: 1\nstages: {}", "has no stage"),
        ("dataset: 1\nstages: {a: 2d}", "stage 'a' of"),
        (stages(a="trainers: x"), "did you mean 'trainer'?"),
        ("dataset: 1\nfolds: [0]\nstages: {a: {trainer: A}}", "has no 'configuration'"),
        ("dataset: 1\nstages: {a: {trainer: A, configuration: 2d}}", "has no 'folds'"),
        (stages(a="folds: []"), "'folds' in stage 'a'"),
        (stages(a="seeds: []"), "so there is nothing to train"),
        (stages(a="folds: [0, 0]"), "has 0 twice"),
        (stages(a="folds: ['0']"), "'folds' in stage 'a'"),
        (stages(a="seeds: [-1]"), "has -1, expected whole numbers"),
        (stages(a="seeds: [true]"), "has True, expected whole numbers"),
        (stages(a="set: [num_epochs]"), "expected an object such as {num_epochs: 6}"),
        (stages(a="set: {lambda.patient: 1, lambda: {patient: 2}}"), "'lambda.patient' is twice in 'set'"),
        (stages(a="grid: {temperature: 1}"), "expected lists of values"),
        (stages(a="from: b", bb=""), "starts from 'b', which is not a stage; did you mean 'bb'?"),
        (stages(a="from: b", b="from: c", c="from: a"), "the stages a, b, c of"),
        (stages(a="from: a"), "the stages a of"),
        (stages(a="", b="from: a, weights: x.pth"), "has both 'from' and 'weights'"),
        ("device: gpu\n" + stages(a=""), "'device' in"),
        ("precision: half\n" + stages(a=""), "expected one of float32, bfloat16, fastest"),
        (stages(a="set: {temperature: .nan}"), "expected a finite number"),
        (stages(a="measure: {networks: [techer]}"), "has 'techer', expected some of student, teacher, second"),
        (stages(a="measure: {cases: test}"), "expected one of validation"),
        (stages(a="measure: student"), "'measure' in stage 'a'"),
        ("plan: {widths: 0.5}\n" + stages(a=""), "has no 'name'"),
        ("plan: {name: nnUNetPlans}\n" + stages(a=""), "are nnU-Net's own"),
        ("plan: {name: P, width: 0.5}\n" + stages(a=""), "did you mean 'widths'?"),
        ("plan: {name: P, widths: [8, x]}\n" + stages(a=""), "'widths' in 'plan' of"),
        ("plan: {name: P, spacing: 4}\n" + stages(a=""), "expected three numbers in mm"),
        ("plan: {name: P, arguments: {c: 2d}}\n" + stages(a=""), "unknown key 'c' in 'arguments'"),
        ("plan: {name: P}\nplans: Q\n" + stages(a=""), "its plan step writes 'P'"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, text, message):
    assert message in refusal(read_sweep, write(tmp_path, text))


@pytest.mark.parametrize("file", sorted(DOCS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_sweeps_of_the_documentation(file):
    """Every trainer exists, every key and value is legal for it (entries of lambda depend on the data)."""
    sweep = read_sweep(file)
    assert make_trainings(sweep)
    for stage in sweep.stages.values():
        block = {key: value for key, value in nested(stage.set).items() if key != "lambda"}
        check_settings(block, stage.name, {}, find_trainer(stage.trainer))


def test_a_missing_file(tmp_path):
    write(tmp_path, "")
    assert "swep.yaml does not exist; did you mean 'sweep.yaml'?" in refusal(read_sweep, tmp_path / "swep.yaml")


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "sweep.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(read_sweep, tmp_path / "sweep.yaml")


# --- trainings -------------------------------------------------------------------------------------------------------


def trainings_of(folder: Path, text: str):
    return make_trainings(read_sweep(write(folder, text)))


def test_trainings_come_seed_by_seed_each_after_the_one_it_starts_from(tmp_path):
    trainings = trainings_of(
        tmp_path, stages(tuned="from: pre, folds: [0, 1]", alone="set: {num_epochs: 3}", pre="folds: 0")
    )
    assert list(trainings) == [
        "pre_s0_fold0",
        "tuned_s0_fold0",
        "tuned_s0_fold1",
        "alone_s0_fold0",
        "pre_s1_fold0",
        "tuned_s1_fold0",
        "tuned_s1_fold1",
        "alone_s1_fold0",
    ]
    assert [training.parent for training in trainings.values()] == [
        None,
        *["pre_s0_fold0"] * 2,
        None,
        None,
        *["pre_s1_fold0"] * 2,
        None,
    ]
    assert trainings["alone_s1_fold0"].settings == {"num_epochs": 3, "seed": 1}
    assert trainings["alone_s1_fold0"].configuration == "alone_s1"


def test_one_pretraining_may_serve_all_seeds_and_folds(tmp_path):
    trainings = trainings_of(tmp_path, stages(pre="seeds: null, folds: all", tuned="from: pre, folds: [0, 1]"))
    assert next(iter(trainings)) == "pre_foldall"
    assert "seed" not in trainings["pre_foldall"].settings
    assert {training.parent for training in list(trainings.values())[1:]} == {"pre_foldall"}
    assert len(trainings) == 5


@pytest.mark.parametrize(
    ("tuned", "message"),
    [("folds: [0, 2]", "fold 2 but starts from 'pre', which has only the folds 0, 1"), ("seeds: [5]", "seed 5")],
)
def test_a_fold_or_seed_that_the_stage_before_lacks(tmp_path, tuned, message):
    assert message in refusal(trainings_of, tmp_path, stages(pre="folds: [0, 1]", tuned=f"from: pre, {tuned}"))


def test_every_training_of_a_grid_has_its_own_chain(tmp_path):
    text = stages(
        pre="seeds: [0], grid: {lambda.patient: [0.1, 1]}",
        tuned="seeds: [0], from: pre, grid: {temperature: [1, 2]}",
        last="seeds: [0], from: tuned",
    )
    trainings = trainings_of(tmp_path, text)
    assert len(trainings) == 2 + 4 + 4
    last = trainings["last_lambda-patient0.1_temperature2_s0_fold0"]
    assert last.parent == "tuned_lambda-patient0.1_temperature2_s0_fold0"
    assert trainings[last.parent].parent == "pre_lambda-patient0.1_s0_fold0"
    assert trainings[last.parent].settings == {"temperature": 2, "seed": 0}


def test_two_stages_never_share_a_configuration(tmp_path):
    text = stages(a="grid: {cutout: [true]}", a_cutouttrue="")
    assert "would have the configuration 'a_cutouttrue_s0'" in refusal(trainings_of, tmp_path, text)


# --- states, commands and the local launcher: a plan whose commands are scripts --------------------------------------

SAVE = """
import sys, zipfile
from pathlib import Path
folder = Path(sys.argv[1])
with zipfile.ZipFile(folder / "checkpoint_final.pth", "w") as file:
    file.writestr("weights", sys.argv[2])
(folder / "validation").mkdir()
(folder / "validation" / "summary.json").write_text("{}")
print("trained")
"""


@dataclass(frozen=True)
class Scripted(Plan):
    """Runs a Python script in the place of ``nnUNetv2_train``."""

    scripts: dict

    def script(self, training):
        return [
            sys.executable,
            "-c",
            self.scripts.get(training.stage.name, SAVE),
            str(self.folder(training)),
            training.name,
        ]

    def words(self, training, standing):
        return self.script(training)


def scripted(folder: Path, text: str, pretraining=(), **scripts) -> Scripted:
    trainings = trainings_of(folder, text)
    sweep = read_sweep(folder / "sweep.yaml")
    return Scripted(sweep, trainings, folder / "results", {"plans_name": PLANS}, frozenset(pretraining), scripts)


CHAIN = stages(pre="seeds: [0]", tuned="seeds: [0], from: pre", alone="seeds: [0]")
PRE, TUNED, ALONE = "pre_s0_fold0", "tuned_s0_fold0", "alone_s0_fold0"


def test_states_and_their_commands(tmp_path):
    plan = scripted(tmp_path, "device: cpu\n" + CHAIN)
    training = plan.trainings[TUNED]
    folder = plan.folder(training)
    assert folder == tmp_path / "results" / f"{CONTROL}__{PLANS}__tuned_s0" / "fold_0"
    before = plan.folder(plan.trainings[PRE]) / FINAL
    stock = ["nnUNetv2_train", "901", "tuned_s0", "0", "-tr", CONTROL, "-p", PLANS, "-device", "cpu"]

    def words():
        return Plan.words(plan, training, plan.standing(training))

    assert words() == [*stock, "-pretrained_weights", str(before)]
    folder.mkdir(parents=True)
    (folder / LATEST).write_text("half a checkpoint")
    assert plan.standing(training) is Standing.START
    with zipfile.ZipFile(folder / LATEST, "w") as file:
        file.writestr("a", "b")
    assert words() == [*stock, "--c"]
    shutil.copyfile(folder / LATEST, folder / FINAL)
    assert words() == [*stock, "--val"]
    (folder / SUMMARY).parent.mkdir()
    (folder / SUMMARY).write_text("{}")
    assert plan.standing(training) is Standing.FINISHED
    (folder / FINAL).write_text("half a checkpoint")
    assert "checkpoint_final.pth is damaged" in refusal(plan.standing, training)


def test_a_pretraining_has_nothing_to_validate(tmp_path):
    plan = scripted(tmp_path, CHAIN, pretraining=[CONTROL])
    folder = plan.folder(plan.trainings[PRE])
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / FINAL, "w") as file:
        file.writestr("a", "b")
    assert plan.standing(plan.trainings[PRE]) is Standing.FINISHED


def test_a_failed_training_stops_only_those_that_start_from_it(tmp_path):
    plan = scripted(tmp_path, CHAIN, pre="print('first'); raise SystemExit('last words')")
    said = []
    outcomes = run_all(plan, said.append)
    assert [outcome.state for outcome in outcomes.values()] == [State.FAILED, State.NOT_RUN, State.TRAINED]
    assert "exit code 1" in outcomes[PRE].why
    assert outcomes[PRE].why.endswith("\n    first\n    last words")
    assert f"it starts from {PRE}, which is not finished" in outcomes[TUNED].why
    assert not plan.folder(plan.trainings[TUNED]).exists()
    first = said[0].splitlines()
    assert first[0] == f"[1/3] {PRE}: to be started"
    assert first[1] == f"  $ {shlex.join(plan.script(plan.trainings[PRE]))}"

    repaired = scripted(tmp_path, CHAIN)
    outcomes = run_all(repaired, said.append)
    assert [outcome.state for outcome in outcomes.values()] == [State.TRAINED, State.TRAINED, State.BEFORE]


def test_a_training_that_cannot_be_written_stops_no_other(tmp_path):
    plan = scripted(tmp_path, CHAIN)
    plan.results.mkdir()
    plan.model_folder(plan.trainings[PRE]).write_bytes(b"")
    outcomes = run_all(plan, lambda line: None)
    assert [outcome.state for outcome in outcomes.values()] == [State.FAILED, State.NOT_RUN, State.TRAINED]
    assert f"{plan.folder(plan.trainings[PRE])} cannot be written (Not a directory)" in outcomes[PRE].why


def test_a_record_that_cannot_be_written_fails_its_training_alone(tmp_path):
    plan = scripted(tmp_path, CHAIN)
    (plan.folder(plan.trainings[ALONE]) / "sweep.json.tmp").mkdir(parents=True)
    outcomes = run_all(plan, lambda line: None)
    assert [outcome.state for outcome in outcomes.values()] == [State.TRAINED, State.TRAINED, State.FAILED]
    assert "sweep.json cannot be written (Is a directory)" in outcomes[ALONE].why


def test_a_command_that_writes_nothing_has_failed(tmp_path):
    outcomes = run_all(scripted(tmp_path, CHAIN, alone="print('done')"), lambda line: None)
    assert outcomes[ALONE].state is State.FAILED
    assert "ended without an error, but" in outcomes[ALONE].why


def test_what_it_notes_tells_other_weights(tmp_path):
    plan = scripted(tmp_path, CHAIN)
    run_all(plan, lambda line: None)
    weights = plan.folder(plan.trainings[PRE]) / FINAL
    record = plan.record(plan.trainings[TUNED])
    assert (record.weights, record.fingerprint) == (str(weights), fingerprint(weights))
    assert record.minutes > 0
    assert plan.record(plan.trainings[PRE]).weights is None
    copy = tmp_path / "copy.pth"
    shutil.copyfile(weights, copy)
    assert fingerprint(copy) == fingerprint(weights)
    assert fingerprint(plan.folder(plan.trainings[ALONE]) / FINAL) != fingerprint(weights)


def test_a_training_that_another_process_trains_is_left_alone(tmp_path):
    """The lock is held by the training, not by the sweep: it outlives a sweep that was killed."""
    waits = "import sys, time; print('up', flush=True); time.sleep(99)"
    plan = scripted(tmp_path, CHAIN, pre=waits)
    process = multiprocessing.get_context("fork").Process(target=run_all, args=(plan, lambda line: None))
    process.start()
    training = plan.trainings[PRE]
    wait_for(lambda: (plan.folder(training) / LOG).is_file() and (plan.folder(training) / LOG).read_text() == "up\n")
    process.kill()
    process.join()
    assert plan.is_running(training)
    outcomes = run_all(plan, lambda line: None)
    assert "another process trains it" in outcomes[PRE].why
    assert [outcome.state for outcome in outcomes.values()] == [State.NOT_RUN, State.NOT_RUN, State.TRAINED]
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    (pid,) = [int(line.split()[0]) for line in listed.splitlines() if str(plan.folder(training)) in line]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not plan.is_running(training))


def test_several_trainings_side_by_side_share_the_threads(tmp_path, monkeypatch):
    """Each of the two ends only when the other one has begun; the one that starts from one of them comes last."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    meets = """
import os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
(folder.parent.parent / f"{sys.argv[2]}.threads").write_text(os.environ["OMP_NUM_THREADS"])
while len(list(folder.parent.parent.glob("*.threads"))) < 2:
    time.sleep(0.05)
"""
    plan = scripted(tmp_path, CHAIN, pre=meets + SAVE, alone=meets + SAVE)
    outcomes = run_all(plan, lambda line: None, jobs=2)
    assert {outcome.state for outcome in outcomes.values()} == {State.TRAINED}
    assert list(outcomes) == list(plan.trainings)
    assert {file.read_text() for file in plan.results.glob("*.threads")} == {str(max(1, usable_cores() // 2))}


@pytest.mark.parametrize(
    ("given", "jobs", "threads", "loaders"),
    [
        ({}, 1, None, None),
        ({}, 2, "4", "4"),
        ({}, 16, "1", "1"),
        ({"OMP_NUM_THREADS": "2", "nnUNet_n_proc_DA": "0"}, 2, "2", "0"),
        ({"OMP_NUM_THREADS": "8", "nnUNet_n_proc_DA": "12"}, 4, "2", "2"),
    ],
)
def test_the_share_of_a_training(given, jobs, threads, loaders):
    variables = shared(given, jobs, 8)
    assert (variables.get("OMP_NUM_THREADS"), variables.get("nnUNet_n_proc_DA")) == (threads, loaders)


def test_an_interrupt_ends_all_that_runs(tmp_path):
    waits = "import sys, time; print('up', flush=True); time.sleep(99)"
    plan = scripted(tmp_path, CHAIN, pre=waits, alone=waits)

    def both_are_up(running):
        logs = [plan.folder(training) / LOG for training in running]
        if len(logs) == 2 and all(log.is_file() and log.read_text() == "up\n" for log in logs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(plan, lambda line: None, jobs=2, watch=both_are_up)
    assert not any(plan.is_running(training) for training in plan.trainings.values())
    assert plan.record(plan.trainings[ALONE]).minutes > 0


def test_what_is_noted_of_a_training(tmp_path):
    plan = scripted(tmp_path, CHAIN, alone="held = bytearray(200 * 2**20)\n" + SAVE)
    run_all(plan, lambda line: None)
    record = plan.record(plan.trainings[ALONE])
    assert record.peak_memory_mib > 200
    assert record.origin["versions"]["torch"]
    assert record.origin["processor"]
    path = plan.folder(plan.trainings[ALONE]) / "sweep.json"
    write_json(path, {key: value for key, value in read_json(path).items() if key not in ("peak_memory_mib", "origin")})
    assert plan.record(plan.trainings[ALONE]).peak_memory_mib is None, "a note of version 0.1"


def test_the_duration_of_epochs_over_several_logs(tmp_path):
    for log, epochs in (("2026_9_1", ((0, 1.5), (1, 2.5))), ("2026_11_1", ((1, 3.5), (2, 4.5)))):
        lines = [f"x: Epoch {epoch} \nx: train_loss 1 \nx: Epoch time: {seconds} s \n" for epoch, seconds in epochs]
        (tmp_path / f"training_log_{log}.txt").write_text("".join([*lines, f"x: Epoch {epochs[-1][0] + 1} \n"]))
    assert epoch_seconds(tmp_path) == [1.5, 3.5, 4.5]


def wait_for(what, process=None, seconds=120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert process is None or process.poll() is None, "it ended too early"
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


# --- submitit, with the same scripts -----------------------------------------------------------------------------


def test_jobs_wait_for_the_training_that_they_start_from(tmp_path):
    plan = scripted(tmp_path, stages(pre="", tuned="from: pre"), pre=SAVE + "import time; time.sleep(1)")
    executor = make_executor(tmp_path / "jobs", "local", {})
    said = []
    cluster = Cluster(plan, executor, prepared_script(plan), 2, said.append)
    outcomes = cluster.run_all()
    assert {outcome.state for outcome in outcomes.values()} == {State.TRAINED}
    assert list(outcomes) == list(plan.trainings)
    submitted = [line.split(":")[0] for line in said if " in job " in line]
    assert submitted[:2] == ["pre_s0_fold0", "pre_s1_fold0"]
    assert sorted(submitted[2:]) == ["tuned_s0_fold0", "tuned_s1_fold0"]
    assert Cluster(plan, executor, prepared_script(plan), 2, said.append).run_all().keys() == outcomes.keys()
    assert len([line for line in said if " in job " in line]) == 4, "a finished training was submitted again"


def prepared_script(plan: Scripted):
    def words(training):
        plan.folder(training).mkdir(parents=True)
        return plan.script(training)

    return words


def test_a_job_that_fails(tmp_path):
    plan = scripted(tmp_path, CHAIN, pre="raise SystemExit('last words')")
    executor = make_executor(tmp_path / "jobs", "local", {"timeout_min": 1})
    outcomes = Cluster(plan, executor, prepared_script(plan), None, lambda line: None).run_all()
    assert [outcome.state for outcome in outcomes.values()] == [State.FAILED, State.NOT_RUN, State.TRAINED]
    (log,) = re.findall(r"and (\S+_log\.err);", outcomes[PRE].why)
    assert "last words" in Path(log).read_text()


def test_what_submitit_would_refuse(tmp_path, monkeypatch):
    jobs = tmp_path / "jobs"
    assert "submitit refuses --launcher-args" in refusal(make_executor, jobs, "local", {"partitoin": "gpu"})
    assert not jobs.exists()
    assert "there is no executor 'slurm' here" in refusal(make_executor, jobs, "slurm", {"timeout_min": 5})
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert '`pip install ".[cluster]"` in a clone' in refusal(make_executor, jobs, "auto", {})


def test_on_slurm_a_time_limit_is_asked_for(tmp_path, monkeypatch):
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{srun.parent}{os.pathsep}{os.environ['PATH']}")
    assert "add timeout_min=MINUTES" in refusal(make_executor, tmp_path / "jobs", "auto", {"slurm_partition": "gpu"})
    values = {"timeout_min": 600, "slurm_partition": "gpu", "gpus_per_node": 1}
    executor = make_executor(tmp_path / "jobs", "auto", values)
    assert executor.cluster == "slurm"
    text = executor._executor._make_submission_file_text("the command", "id")
    assert "#SBATCH --time=600" in text
    assert "#SBATCH --partition=gpu" in text


# --- checks of a real dataset, before anything starts ------------------------------------------------------------


@pytest.fixture
def results(training) -> Path:
    folder = Path(os.environ["nnUNet_results"])
    folder.mkdir()
    return folder


def sweep(capsys, file: Path, *words: str, code: int = 0) -> str:
    """Run the command in this process; return what it prints, or the sentence that refuses."""
    assert main(["sweep", str(file), *words]) == code
    captured = capsys.readouterr()
    if code == 0:
        return captured.out
    assert captured.err.startswith("semicon sweep: ")
    assert captured.err.count("\n") == 1
    return captured.err.strip()


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("trainer: nnUNetTrainerSupervisedContrl, configuration: 2d", "did you mean 'nnUNetTrainerSupervisedControl'?"),
        (f"trainer: {CONTROL}, configuration: 2d_shrt", "no configuration '2d_shrt' in nnUNetPlans.json"),
        (f"trainer: {CONTROL}, configuration: 2d, folds: 3", "there is no fold 3 in"),
        (f"trainer: {CONTROL}, configuration: 2d, set: {{num_epoch: 3}}", "did you mean 'num_epochs'?"),
        (f"trainer: {CONTROL}, configuration: 2d, set: {{num_epochs: 0}}", "'num_epochs' in 'set' is 0, expected at"),
        (f"trainer: {CONTROL}, configuration: 2d, grid: {{tempratur: [1]}}", "'tempratur' in 'grid'"),
        (f"trainer: {CONTROL}, configuration: 2d, grid: {{temperature: [1, 0]}}", "'temperature' in 'grid' is 0"),
        (
            f"trainer: {CONTROL}, configuration: 2d, grid: {{temperature: [1, 1]}}",
            "'temperature' in 'grid' has the value 1 twice",
        ),
        (f"trainer: {CONTROL}, configuration: 2d, set: {{lambda.age: 1}}", "unknown entry 'lambda.age' in 'set'"),
        (f"trainer: {CONTROL}, configuration: 2d, set: {{seed: 1}}", "'seed' is in 'set' and in 'seeds'"),
        ("trainer: nnUNetTrainer, configuration: 2d, set: {num_epochs: 3}", "nnUNetTrainer would ignore"),
        ("trainer: nnUNetTrainer, configuration: 2d_short", "which the stock trainer nnUNetTrainer would ignore"),
        (f"trainer: {CONTROL}, configuration: 2d, weights: no.pth", "no.pth does not exist: expected a checkpoint"),
        (
            f"trainer: {CONTROL}, configuration: 3d_fullres, from: first",
            "the weights it starts from do not fit (conv_op is",
        ),
    ],
)
def test_a_wrong_stage_is_one_sentence_and_nothing_is_written(training, results, capsys, tmp_path, stage, message):
    text = f"""
        dataset: 901
        folds: [0]
        seeds: [0]
        stages:
          first: {{trainer: {TEACHER}, configuration: 2d}}
          wrong: {{{stage}}}
        """
    before = training.plans_file.read_bytes()
    sentence = sweep(capsys, write(tmp_path, text), code=1)
    assert message in sentence
    assert "stage 'wrong' of" in sentence
    assert training.plans_file.read_bytes() == before
    assert not list(results.iterdir())


def test_a_name_that_cannot_be_one(training, results, capsys, tmp_path):
    sentence = sweep(capsys, write(tmp_path, stages(a__b="")), "--dry-run", code=1)
    assert "the name 'a__b_s0' contains '__'" in sentence
    assert sentence.endswith("choose another name for it")


def test_options_that_do_not_go_together(training, capsys, tmp_path):
    file = write(tmp_path, stages(a=""))
    assert "--jobs is 0, expected at least 1" in sweep(capsys, file, "--jobs", "0", code=1)
    assert "--launcher-args is for" in sweep(capsys, file, "--launcher-args", "timeout_min=5", code=1)
    assert "--training runs a training here" in sweep(capsys, file, "--launcher", "submitit", "--training", "1", code=1)
    words = ("--launcher", "submitit", "--launcher-args", "gpus")
    assert "'gpus' after --launcher-args is not KEY=VALUE" in sweep(capsys, file, *words, code=1)


def test_values_are_those_of_configure(training, results, capsys, tmp_path):
    """1e-1 is a text in YAML, a list may be written as one, an object as dotted keys or as an object."""
    values = "set: {temperature: 1e-1, lambda: {patient: 1e-2}, batch_size: 2}, grid: {gamma_start: [1, 2e0]}"
    text = stages(a=f"{values}, seeds: [3]").replace(CONTROL, "nnUNetTrainerSPCon")
    out = sweep(capsys, write(tmp_path, text), "--dry-run")
    assert [line.split()[2] for line in out.splitlines() if line.startswith("#")] == [
        "a_gamma_start1_s3_fold0,",
        "a_gamma_start2.0_s3_fold0,",
    ]
    words = ["temperature=1e-1", "lambda.patient=1e-2", "batch_size=2"]
    name = ["-d", "901", "-c", "2d", "--name", "a", "--set", *words]
    assert main(["configure", *name, "--grid", "gamma_start=1,2e0", "--seeds", "3"]) == 0
    sweep(capsys, write(tmp_path, text), "--dry-run")  # would refuse other values


def test_the_precision_of_a_sweep(training, results, tmp_path):
    text = stages(a="", b="set: {precision: float32}") + "  c: {trainer: nnUNetTrainer, configuration: 2d}\n"
    fastest = "bfloat16" if has_bfloat16() else None
    for head, of_a in (("precision: bfloat16", "bfloat16"), ("device: cpu\nprecision: fastest", fastest)):
        plan, _ = prepared_plan(read_sweep(write(tmp_path, f"{head}\n{text}")), write=False)
        of_stages = [plan.trainings[f"{stage}_s0_fold0"].settings.get("precision") for stage in "abc"]
        assert of_stages == [of_a, "float32", None]


def test_fold_all_has_nothing_to_measure(training, results, capsys, tmp_path):
    text = stages(a="folds: all, measure: {networks: [student]}")
    assert "fold all has no validation cases to measure" in sweep(capsys, write(tmp_path, text), "--dry-run", code=1)


def test_a_dry_run_writes_nothing(training, results, capsys, tmp_path):
    before = training.plans_file.read_bytes()
    out = sweep(capsys, write(tmp_path, stages(a="", b="from: a")), "--dry-run").splitlines()
    assert training.plans_file.read_bytes() == before
    assert not list(results.iterdir())
    assert len(out) == 8
    assert out[2].startswith("# 2 b_s0_fold0, to be started, after 1 a_s0_fold0: nnUNetv2_train 901 b_s0 0 -tr ")
    one = sweep(capsys, tmp_path / "sweep.yaml", "--dry-run", "--training", "2").splitlines()
    assert one == out[2:4]
    assert "no training 'b_fold0'; did you mean" in sweep(
        capsys, tmp_path / "sweep.yaml", "--training", "b_fold0", code=1
    )


def test_existing_configurations_with_other_values_are_refused(training, results, capsys, tmp_path):
    configure(training, "a_s1", "2d", num_epochs=3, seed=1)
    sentence = sweep(capsys, write(tmp_path, stages(a="set: {num_epochs: 4}")), "--dry-run", code=1)
    assert "configuration 'a_s1' already exists with other values (num_epochs: 3 -> 4)" in sentence
    assert "choose another name for it, or replace with --force" in sentence
    sweep(capsys, tmp_path / "sweep.yaml", "--dry-run", "--force")
    assert read_json(training.plans_file)["configurations"]["a_s1"]["semicon"]["num_epochs"] == 3


def test_a_configuration_that_is_not_preprocessed(training, results, capsys, tmp_path):
    plans = read_json(training.plans_file)
    plans["configurations"]["2d_other"] = {"inherits_from": "2d", "data_identifier": "elsewhere"}
    write_json(training.plans_file, plans)
    text = stages(a="").replace("configuration: 2d", "configuration: 2d_other")
    sentence = sweep(capsys, write(tmp_path, text), "--dry-run", code=1)
    assert "run: nnUNetv2_preprocess -d 901 -plans_name nnUNetPlans -c 2d_other" in sentence


def test_too_few_cases_for_a_draw_of_nnunet(tiny, tmp_path, monkeypatch, capsys):
    data = tiny.fresh(tmp_path)
    data.use(monkeypatch)
    for case in ("patient001_frame02", "patient002_frame02", "patient003_frame02"):
        for file in (data.preprocessed_dataset / "nnUNetPlans_2d").glob(f"{case}*"):
            file.unlink()
    sentence = sweep(capsys, write(tmp_path, stages(a="")), "--dry-run", code=1)
    assert "stage 'a' of" in sentence
    assert "cannot draw its 5 folds from 3 labeled cases" in sentence
    assert "semicon split -d 901 --labeled 2 --folds 3" in sentence
    sweep(capsys, write(tmp_path, stages(a="folds: all")), "--dry-run")


def test_other_plans_are_named_in_words_of_the_file(training, results, capsys, tmp_path):
    sentence = sweep(capsys, write(tmp_path, "plans: nnUNetPlan\n" + stages(a="")), "--dry-run", code=1)
    assert "nnUNetPlan.json does not exist, but other plans do; name one of them with 'plans' in" in sentence
    assert sentence.endswith("sweep.yaml: nnUNetPlans")


# --- weights -----------------------------------------------------------------------------------------------------


def saved(trainer: str, configuration: str, path: Path) -> Path:
    """A checkpoint as the trainer writes it, before the first step."""
    built = make_trainer(trainer, configuration)
    built.initialize()
    built.save_checkpoint(str(path))
    return path


def found(path: Path, configuration: str = "2d", plans: str = PLANS) -> list[tuple[str, str]]:
    return [(f.status, f"{f.text} -> {f.remedy}") for f in survived(check_weights("901", plans, configuration, path))]


@pytest.mark.parametrize("trainer", ["nnUNetTrainer", CONTROL])
def test_weights_fit_or_say_why_not(training, tmp_path, trainer):
    file = saved(trainer, "2d", tmp_path / "w.pth")
    assert [status for status, _ in found(file)] == ["ok"]
    assert [status for status, _ in found(file, "2d_short")] == ["ok"]
    ((status, text),) = found(file, "3d_fullres")
    assert status == "problem"
    assert "conv_op is torch.nn.modules.conv.Conv2d in" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features_per_stage": [8, 16, 16, 24]}, "features_per_stage is [8, 16, 16, 16] in"),
        ({"strides": [[1, 1], [2, 2], [2, 2], [2, 1]]}, "and [[1, 1], [2, 2], [2, 2], [2, 1]] in configuration '2d'"),
        ({"n_conv_per_stage": [1, 1, 1, 2]}, "n_conv_per_stage is [1, 1, 1, 1] in"),
    ],
)
def test_weights_of_another_plans_file(training, tmp_path, change, message):
    file = saved("nnUNetTrainer", "2d", tmp_path / "w.pth")
    plans = read_json(training.plans_file)
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"].update(change)
    other = training.preprocessed_dataset / "otherPlans.json"
    write_json(other, plans | {"plans_name": "otherPlans"})
    try:
        ((status, text),) = found(file, plans="otherPlans")
    finally:
        other.unlink()
    assert status == "problem"
    assert message in text


def test_other_classes_fit_and_other_channels_do_not(training, tmp_path, monkeypatch):
    description = training.preprocessed_dataset / "dataset.json"
    before = description.read_bytes()
    content = read_json(description)
    try:
        write_json(description, content | {"labels": {"background": 0, "shell": 1, "core": 2, "more": 3}})
        more_classes = saved("nnUNetTrainer", "2d", tmp_path / "classes.pth")
        write_json(description, content | {"channel_names": {"0": "MRI", "1": "MRI"}})
        more_channels = saved("nnUNetTrainer", "2d", tmp_path / "channels.pth")
    finally:
        description.write_bytes(before)
    assert [status for status, _ in found(more_classes)] == ["ok"]
    ((status, text),) = found(more_channels)
    assert status == "problem"
    assert "input channels is 2 in" in text


def test_weights_that_fit_but_expect_other_images(training, tmp_path):
    file = saved("nnUNetTrainer", "2d", tmp_path / "w.pth")
    configure(training, "2d_spacing", "2d")
    plans = read_json(training.plans_file)
    plans["configurations"]["2d_spacing"]["spacing"] = [3.0, 3.0]
    write_json(training.plans_file, plans)
    fits, hint = found(file, "2d_spacing")
    assert (fits[0], hint[0]) == ("ok", "note")
    assert "trained with spacing [1.0, 1.0]" in hint[1]


def test_files_that_hold_no_weights(training, tmp_path):
    file = tmp_path / "w.pth"
    assert "does not exist" in found(file)[0][1]
    whole = saved("nnUNetTrainer", "2d", tmp_path / "whole.pth").read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "is damaged or no checkpoint" in found(file)[0][1]
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", "b")
    assert "cannot be read" in found(file)[0][1]
    torch.save({"state_dict": {}}, file)
    assert "has no 'network_weights'" in found(file)[0][1]
    torch.save({"network_weights": {"a": torch.zeros(2)}}, file)
    ((status, text),) = found(file)
    assert status == "problem"
    assert "the parameter encoder" in text
    assert "is missing in" in text


def test_doctor_checks_weights(training, tmp_path, capsys, monkeypatch):
    file = saved("nnUNetTrainer", "2d", tmp_path / "w.pth")
    monkeypatch.setattr("nnunet_semicon.cli.doctor.check_discovery", lambda: iter(()))  # takes seconds
    main(["doctor", "-d", "901", "-c", "2d", "--weights", str(file)])
    assert f"weights\n  ok       {file} fits configuration '2d' of nnUNetPlans.json" in capsys.readouterr().out
    assert main(["doctor", "-d", "901", "-c", "3d_fullres", "--weights", str(file)]) == 1
    assert "  problem  the weights do not fit: conv_op is" in capsys.readouterr().out
    assert main(["doctor", "--weights", str(file)]) == 1
    assert "--weights needs -d DATASET and -c CONFIGURATION" in capsys.readouterr().err
    assert main(["doctor", "-d", "901", "-c", "2d"]) == 1
    assert "-c and -p are for --weights FILE" in capsys.readouterr().err


# --- real trainings ----------------------------------------------------------------------------------------------

REAL = f"""
    dataset: 901
    device: cpu
    folds: [0]
    seeds: [0]
    set: {{num_epochs: 1}}
    stages:
      taught: {{trainer: {TEACHER}, configuration: 2d_short}}
      tuned: {{trainer: {CONTROL}, configuration: 2d_short, from: taught}}
    """
TAUGHT, TUNED_AFTER = f"{TEACHER}__{PLANS}__taught_s0", f"{CONTROL}__{PLANS}__tuned_s0"


@dataclass(frozen=True)
class Swept:
    tiny: Tiny
    file: Path
    printed: str


@pytest.fixture(scope="session")
def swept(tiny, shared) -> Swept:
    """A finished sweep of two trainings, one starting from the other. Read-only: tests take ``again``."""

    def make(folder: Path) -> None:
        copy = prepare(tiny.fresh(folder))
        printed = copy.run("semicon", "sweep", write(copy.root, REAL), nnUNet_def_n_proc="1").stdout
        (folder / "printed.txt").write_text(printed)

    folder = shared("swept", make)
    copy = Tiny(folder / "nnunet")
    return Swept(copy, copy.root / "sweep.yaml", (folder / "printed.txt").read_text())


@pytest.fixture
def again(swept, tmp_path, monkeypatch) -> Swept:
    """The finished sweep with results that a test may change, in this process's environment."""
    copy = Tiny(tmp_path / "copy")
    shutil.copytree(swept.tiny.root, copy.root)
    copy.use(monkeypatch)
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    return Swept(copy, write(copy.root, REAL), "")


def fold_of(swept: Swept, model: str) -> Path:
    return swept.tiny.results / DATASET / model / "fold_0"


def test_a_sweep_trains_its_trainings_in_order(swept):
    printed = swept.printed.splitlines()
    commands = [line for line in printed if line.startswith("  $ ")]
    weights = fold_of(swept, TAUGHT) / FINAL
    assert commands == [
        f"  $ nnUNetv2_train 901 taught_s0 0 -tr {TEACHER} -p {PLANS} -device cpu",
        f"  $ nnUNetv2_train 901 tuned_s0 0 -tr {CONTROL} -p {PLANS} -device cpu -pretrained_weights {weights}",
    ]
    assert [line for line in printed if line.startswith("[")] == [
        "[1/2] taught_s0_fold0: to be started",
        "[1/2] taught_s0_fold0: trained",
        "[2/2] tuned_s0_fold0: to be started",
        "[2/2] tuned_s0_fold0: trained",
    ]
    assert re.search(r"^taught_s0_fold0 +trained +\d+\.\d$", swept.printed, re.MULTILINE)
    assert printed[-1] == f"  semicon compare {TAUGHT} {TUNED_AFTER}"
    log = (fold_of(swept, TUNED_AFTER) / LOG).read_text()
    assert f"Loading pretrained weights from file  {weights}" in log
    assert read_json(fold_of(swept, TUNED_AFTER) / "semicon_config.json")["settings"]["num_epochs"]["value"] == 1
    block = read_json(swept.tiny.plans_file)["configurations"]["tuned_s0"]
    assert block["inherits_from"] == "2d_short"
    assert block["semicon"]["num_epochs"] == 1


def test_finished_trainings_never_run_again(again):
    """Nor does anything change, and what it says at the end can be typed."""
    files = [fold_of(again, model) / name for model in (TAUGHT, TUNED_AFTER) for name in (FINAL, LOG, "sweep.json")]
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in [*files, again.tiny.plans_file]]
    printed = again.tiny.run("semicon", "sweep", again.file).stdout
    assert "$ nnUNetv2_train" not in printed
    assert "[1/2] taught_s0_fold0: finished before\n[2/2] tuned_s0_fold0: finished before\n" in printed
    assert before == [(path.stat().st_mtime_ns, path.read_bytes()) for path in [*files, again.tiny.plans_file]]
    lines = printed[printed.index("  cd ") :].splitlines()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-ec", "\n".join(lines)], env=again.tiny.env | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "paired by case" in done.stdout


@pytest.mark.slow
def test_a_line_of_the_dry_run_trains_one_training_in_a_fresh_shell(again, capsys):
    """The deleted training alone; its parent is not touched."""
    shutil.rmtree(fold_of(again, TUNED_AFTER))
    parent = fold_of(again, TAUGHT) / FINAL
    before = parent.stat().st_mtime_ns
    lines = sweep(capsys, again.file, "--dry-run").splitlines()
    assert lines[0].startswith("# 1 taught_s0_fold0, finished: ")
    for line, expected in ((lines[1], "finished before"), (lines[3], "trained")):
        shell = {"PATH": os.defpath, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        done = subprocess.run(["sh", "-c", line], cwd="/", env=shell, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1].endswith(expected)
    assert (fold_of(again, TUNED_AFTER) / SUMMARY).is_file()
    assert parent.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_sweep_on_submitits_local_executor(again):
    for model in (TAUGHT, TUNED_AFTER):
        shutil.rmtree(fold_of(again, model))
    words = ("--launcher", "submitit", "--executor", "local", "--jobs", "1")
    printed = again.tiny.run("semicon", "sweep", again.file, *words, nnUNet_def_n_proc="1").stdout
    assert "[1/2] taught_s0_fold0: trained\n" in printed
    assert "[2/2] tuned_s0_fold0: trained\n" in printed
    assert (fold_of(again, TUNED_AFTER) / SUMMARY).is_file()
    log = (fold_of(again, TUNED_AFTER) / LOG).read_text()
    assert f"Loading pretrained weights from file  {fold_of(again, TAUGHT) / FINAL}" in log
    assert list((again.file.parent / "sweep_jobs").glob("*_log.out"))


def test_a_training_alone_needs_its_parent(again, capsys):
    for model in (TAUGHT, TUNED_AFTER):
        shutil.rmtree(fold_of(again, model))
    done = again.tiny.run("semicon", "sweep", again.file, "--training", "2", check=False)
    assert done.returncode == 1
    assert "it starts from taught_s0_fold0, which is not finished" in done.stdout
    assert not fold_of(again, TUNED_AFTER).exists()


def test_results_of_other_settings_do_not_count_as_finished(again, capsys):
    write(again.file.parent, REAL.replace("num_epochs: 1", "num_epochs: 2"))
    assert "already exists with other values" in sweep(capsys, again.file, "--dry-run", code=1)
    sentence = sweep(capsys, again.file, "--force", code=1)
    assert f"{fold_of(again, TAUGHT)} was trained with other settings (num_epochs was 1 and is now 2)" in sentence
    assert read_json(again.tiny.plans_file)["configurations"]["tuned_s0"]["semicon"]["num_epochs"] == 1


def test_results_from_other_weights_do_not_count_as_finished(again, capsys):
    folder, parent = fold_of(again, TUNED_AFTER), fold_of(again, TAUGHT)
    write(again.file.parent, REAL.replace(", from: taught", ""))
    assert f"{folder} was trained from " in sweep(capsys, again.file, "--dry-run", code=1)
    write(again.file.parent, REAL)
    sweep(capsys, again.file, "--dry-run")

    shutil.copyfile(parent / FINAL, parent / "kept.pth")
    shutil.copyfile(folder / FINAL, parent / FINAL)
    write(again.file.parent, REAL.replace("from: taught", f"weights: {parent / FINAL}"))
    assert "was trained from other weights" in sweep(capsys, again.file, "--dry-run", code=1)
    write(again.file.parent, REAL.replace("from: taught", f"weights: {parent / 'kept.pth'}"))
    sweep(capsys, again.file, "--dry-run")
    write(again.file.parent, REAL)
    (parent / FINAL).unlink()
    assert "is not there: put it back, or remove that folder" in sweep(capsys, again.file, "--dry-run", code=1)
    (folder / "sweep.json").unlink()  # trained by hand: nobody knows from what
    sweep(capsys, again.file, "--dry-run")


def test_planning_again_does_not_go_unnoticed(again, capsys):
    plans = read_json(again.tiny.plans_file)
    plans["configurations"]["2d"]["patch_size"] = [16, 32]
    write_json(again.tiny.plans_file, plans)
    sentence = sweep(capsys, again.file, "--dry-run", code=1)
    assert "patch_size was [32, 32] and is now [16, 32]" in sentence


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on(tiny, tmp_path):
    copy = prepare(tiny.fresh(tmp_path))
    text = REAL.replace("num_epochs: 1", "num_epochs: 60, num_iterations_per_epoch: 1, num_val_iterations_per_epoch: 1")
    file = write(copy.root, text)
    here = Swept(copy, file, "")
    process = subprocess.Popen(
        [command("semicon"), "sweep", str(file)],
        env=copy.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    fold = fold_of(here, TAUGHT)
    wait_for(lambda: (fold / LATEST).is_file(), process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.strip().endswith(f"the same command goes on: semicon sweep {file}")
    listed = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True).stdout
    assert "nnUNetv2_train 901 taught_s0" not in listed
    minutes = json.loads((fold / "sweep.json").read_text())["minutes"]
    assert minutes > 0

    printed = copy.run("semicon", "sweep", file).stdout
    assert f"  $ nnUNetv2_train 901 taught_s0 0 -tr {TEACHER} -p {PLANS} -device cpu --c\n" in printed
    assert (fold_of(here, TUNED_AFTER) / SUMMARY).is_file()
    assert json.loads((fold / "sweep.json").read_text())["minutes"] > minutes


# --- measured ----------------------------------------------------------------------------------------------------


def result(swept: Swept, name: str) -> Path:
    return swept.file.parent / "sweep_results" / f"{name}.json"


def test_a_finished_sweep_is_measured_later(again, capsys):
    """Only what is missing is measured: no training runs again, and a network that a method lacks is left out."""
    text = REAL.replace("configuration: 2d_short}", "configuration: 2d_short, measure: {networks: [teacher, second]}}")
    write(again.file.parent, text)
    listed = sweep(capsys, again.file, "--dry-run").splitlines()
    assert listed[0].startswith("# 1 taught_s0_fold0, finished, teacher to be measured: ")
    before = (fold_of(again, TAUGHT) / FINAL).stat().st_mtime_ns
    printed = again.tiny.run("semicon", "sweep", again.file).stdout
    assert "$ nnUNetv2_train" not in printed
    assert "[1/2] taught_s0_fold0: has no second, which is left out\n[1/2] taught_s0_fold0: measured" in printed
    assert "[2/2] tuned_s0_fold0: finished before" in printed
    assert (fold_of(again, TAUGHT) / FINAL).stat().st_mtime_ns == before
    (file,) = result(again, "").parent.iterdir()
    assert file == result(again, "taught_s0_fold0__teacher")
    content = read_json(file)
    told = {key: content[key] for key in ("stage", "trainer", "network", "fold", "seed", "iterations", "start")}
    assert told == {
        "stage": "taught",
        "trainer": TEACHER,
        "network": "teacher",
        "fold": 0,
        "seed": 0,
        "iterations": content["semicon_config"]["settings"]["num_iterations_per_epoch"]["value"],
        "start": None,
    }
    split = read_json(again.tiny.preprocessed_dataset / "splits_final.json")[0]
    assert content["cases"]["validation"] == len(split["val"])
    assert [entry["case"] for entry in content["metric_per_case"]] == sorted(split["val"])
    assert content["peak_memory_mib"] == read_json(fold_of(again, TAUGHT) / "sweep.json")["peak_memory_mib"]
    assert 0 < content["seconds_per_iteration"] <= content["mean_epoch_seconds"]
    assert content["threads"] == 1

    written = file.read_bytes()
    printed = again.tiny.run("semicon", "sweep", again.file).stdout
    assert "[1/2] taught_s0_fold0: finished before" in printed
    assert file.read_bytes() == written
    write_json(file, content | {"checkpoint": "of an earlier training"})
    plan, _ = prepared_plan(read_sweep(again.file), write=False)
    assert plan.unmeasured(plan.trainings["taught_s0_fold0"]) == ["teacher"]


def painting(weights: dict[str, torch.Tensor], label: int) -> dict[str, torch.Tensor]:
    """Weights of a network that predicts one class everywhere."""
    last = max(name for name in weights if name.startswith("decoder.seg_layers.")).rpartition(".")[0]
    bias = torch.nn.functional.one_hot(torch.tensor(label), len(weights[f"{last}.bias"])).float()
    return weights | {f"{last}.weight": torch.zeros_like(weights[f"{last}.weight"]), f"{last}.bias": bias}


@pytest.mark.slow
def test_student_and_teacher_are_measured_whichever_predicts(again):
    file = fold_of(again, TAUGHT) / FINAL
    content = torch.load(file, weights_only=False)
    student, teacher = (painting(dict(content["network_weights"]), label) for label in (1, 2))
    content["network_weights"], content["semicon"]["student"] = teacher, student  # as with predict_with=teacher
    content["semicon"]["method"] |= {f"teacher.module.{name}": tensor for name, tensor in teacher.items()}
    torch.save(content, file)
    text = REAL[: REAL.index("      tuned:")]  # that stage started from other weights
    text = text.replace("configuration: 2d_short}", "configuration: 2d_short, measure: {networks: [student, teacher]}}")
    again.tiny.run("semicon", "sweep", write(again.file.parent, text))
    for network, seen, unseen in (("student", "1", "2"), ("teacher", "2", "1")):
        summary = read_json(result(again, f"taught_s0_fold0__{network}"))["semicon"]["summary"]
        assert summary[seen]["missing_in_prediction"] == [], network
        assert len(summary[unseen]["missing_in_prediction"]) == summary[unseen]["cases"], network


def fake_results(folder: Path, text: str, *names: str) -> Path:
    """A sweep file beside results of these trainings and networks."""
    case = {"case": "a", "reference_file": "a", "prediction_file": "a"}
    for number, name in enumerate(names):
        metrics = {"1": {"DSC": 0.5 + number / 100, "HD95_mm": 1.0, "ASSD_mm": 1.0}}
        content = {"metric_per_case": [case | {"metrics": metrics, "diagonal": {"mm": 9.0, "voxel": 9.0}}]}
        (folder / "sweep_results").mkdir(exist_ok=True)
        write_json(folder / "sweep_results" / f"{name}.json", content | {"semicon": {"class_names": {"1": "x"}}})
    return write(folder, text)


MEASURED = "measure: {networks: [student, teacher]}\n" + stages(control="", taught="")


def test_compare_reads_a_sweep(tmp_path, capsys):
    names = [f"{stage}_s{seed}_fold0__student" for stage in ("control", "taught") for seed in (0, 1)]
    file = fake_results(tmp_path, MEASURED, *names, "taught_s0_fold0__teacher")
    assert main(["compare", str(file), "--metrics", "DSC"]) == 0
    printed = capsys.readouterr().out
    assert "control" in printed
    assert "taught student" in printed
    assert "taught teacher" in printed
    assert f"taught__teacher_s1 is left out, because fold 0 is not measured: `semicon sweep {file}` goes on" in printed


def test_compare_says_that_nothing_is_measured(tmp_path, capsys):
    assert main(["compare", str(write(tmp_path, MEASURED))]) == 1
    assert "holds nothing to compare: run `semicon sweep " in capsys.readouterr().err
    assert main(["compare", str(write(tmp_path, stages(a="")))]) == 1
    assert "measures nothing: add e.g. `measure: {networks: [student]}`" in capsys.readouterr().err


# --- planned -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "factor", "expected"), [(32, 0.5, 16), (320, 0.5, 160), (32, 0.25, 8), (8, 0.5, 8), (24, 0.5, 16)]
)
def test_widths_are_multiples_of_8(width, factor, expected):
    assert scaled(width, factor) == expected


PLANNED = """
    dataset: 901
    device: cpu
    plan: {name: nnUNetPlansBench, spacing: [8, 2, 2], widths: 0.25}
    folds: [0]
    seeds: [0]
    set: {num_epochs: 1, num_iterations_per_epoch: 1, num_val_iterations_per_epoch: 1, batch_size: 2}
    stages:
      control: {trainer: nnUNetTrainerSupervisedControl, configuration: 2d}
    """


def test_a_sweep_begins_at_raw_data(tmp_path, monkeypatch, capsys):
    tiny = Tiny(tmp_path)
    tiny.use(monkeypatch)

    def dry_run() -> str:
        assert main(["sweep", str(tmp_path / "sweep.yaml"), "--dry-run"]) == 0
        return capsys.readouterr().out

    def refused(text: str) -> str:
        assert main(["sweep", str(write(tmp_path, text))]) == 1
        return capsys.readouterr().err

    for folder in (tiny.preprocessed, tiny.results):
        folder.mkdir(parents=True)
    write_raw(tiny.raw)
    write(tmp_path, PLANNED)
    printed = dry_run()
    names = [line.split()[1] for line in printed.splitlines() if line.startswith("$ ")]
    assert names[:3] == ["nnUNetv2_extract_fingerprint", "nnUNetv2_plan_experiment", "nnUNetv2_preprocess"]
    assert names[3:] == ["semicon"]
    assert not tiny.preprocessed_dataset.exists()

    assert "'widths' has 2 numbers, but configuration '2d' has " in refused(PLANNED.replace("0.25", "[8, 8]"))
    assert not list(tiny.preprocessed_dataset.glob("nnUNetPlans*")), "half a plan"
    printed = tiny.run("semicon", "sweep", write(tmp_path, PLANNED), nnUNet_def_n_proc="1").stdout
    assert "[1/1] control_s0_fold0: trained" in printed
    plans = read_json(tiny.preprocessed_dataset / "nnUNetPlansBench.json")
    planned = plans["configurations"]["2d"]
    assert planned["spacing"] == [2.0, 2.0]
    assert set(planned["architecture"]["arch_kwargs"]["features_per_stage"]) <= {8, 16, 32, 64, 128}
    assert planned["architecture"]["arch_kwargs"]["features_per_stage"][0] == 8
    assert len(list((tiny.preprocessed_dataset / "nnUNetPlansBench_2d").glob("*.pkl"))) == 6
    assert not (tiny.preprocessed_dataset / "nnUNetPlans.json").exists()

    assert dry_run().startswith("# 1 control_s0_fold0, finished: ")
    other = refused(PLANNED.replace("0.25", "0.5"))
    assert "was made with other values (widths: 0.25 -> 0.5): choose another 'name' in 'plan' of" in other
    (tiny.preprocessed_dataset / "nnUNetPlansBench_2d" / "patient001_frame01.pkl").unlink()
    write(tmp_path, PLANNED)
    assert dry_run().startswith("$ nnUNetv2_preprocess ")


# --- killed, and side by side ------------------------------------------------------------------------------------

FOUR = f"""
    dataset: 901
    device: cpu
    folds: [0]
    seeds: [0, 1]
    set: {{num_epochs: 4, save_every: 1}}
    measure: {{networks: [student, teacher]}}
    stages:
      control: {{trainer: {CONTROL}, configuration: 2d_short}}
      taught: {{trainer: {TEACHER}, configuration: 2d_short}}
    """


def kill_everything(process: subprocess.Popen, root: Path) -> None:
    """Kill a sweep and all that it started (each command has a session of its own), as a crash of the machine would."""
    process.kill()
    process.wait()
    listed = subprocess.run(["ps", "-A", "-ww", "e", "-o", "pid=,args="], capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        if f"nnUNet_raw={root}" in line and int(line.split()[0]) != os.getpid():
            with suppress(ProcessLookupError):
                os.kill(int(line.split()[0]), signal.SIGKILL)


@pytest.mark.slow
def test_a_sweep_that_is_killed_twice_ends_with_all_results(tiny, tmp_path):
    copy = prepare(tiny.fresh(tmp_path))
    file = write(copy.root, FOUR)
    results = copy.root / "sweep_results"

    def killed_when(what) -> None:
        process = subprocess.Popen([command("semicon"), "sweep", str(file)], env=copy.env, stdout=subprocess.DEVNULL)
        wait_for(what, process, seconds=300)
        kill_everything(process, copy.raw)

    model = copy.results / DATASET / f"{TEACHER}__{PLANS}__taught_s0"
    killed_when(lambda: (model / "fold_0" / LATEST).is_file())  # while it trains
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in results.iterdir()}
    assert [path.name for path in before] == ["control_s0_fold0__student.json"]
    log = model / "fold_0" / LOG
    killed_when(lambda: log.is_file() and b"$ nnUNetv2_predict" in log.read_bytes())  # while it measures
    assert not (results / "taught_s0_fold0__student.json").exists()

    printed = copy.run("semicon", "sweep", file, "--jobs", "2").stdout
    assert "[1/4] control_s0_fold0: finished before" in printed
    assert "[2/4] taught_s0_fold0: measured" in printed
    assert {path.name for path in results.iterdir()} == {
        *(f"control_s{seed}_fold0__student.json" for seed in (0, 1)),
        *(f"taught_s{seed}_fold0__{network}.json" for seed in (0, 1) for network in ("student", "teacher")),
    }
    for path, (time_written, content) in before.items():
        assert (path.stat().st_mtime_ns, path.read_bytes()) == (time_written, content)
    assert "taught teacher" in copy.run("semicon", "compare", file).stdout


@pytest.mark.slow
def test_two_jobs_train_the_same_weights_as_one(tiny, tmp_path):
    weights = []
    for jobs in ("1", "2"):
        copy = prepare(tiny.fresh(tmp_path / jobs))
        text = FOUR.replace("num_epochs: 4", "num_epochs: 1").replace(
            "    measure: {networks: [student, teacher]}\n", ""
        )
        copy.run("semicon", "sweep", write(copy.root, text), "--jobs", jobs, nnUNet_def_n_proc="1")
        files = sorted(copy.results.rglob(FINAL))
        assert len(files) == 4
        weights.append([torch.load(file, weights_only=False)["network_weights"] for file in files])
    for one, two in zip(*weights, strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
