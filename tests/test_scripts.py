import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import Tiny, read_json, write_json

REPOSITORY = Path(__file__).parent.parent
SCRIPTS = REPOSITORY / "scripts"
CONTROL = "nnUNetTrainerSupervisedControl"
MEAN_TEACHER = "nnUNetTrainerMeanTeacher"
SP_CON = "nnUNetTrainerSPCon"
LABELED_ONLY = (CONTROL, "nnUNetTrainerSwinUNet", "nnUNetTrainerSupervisedLocal")


def script(name: str, *words, env: dict | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPTS / name, *words]
    return subprocess.run(
        [str(word) for word in command], env=env or os.environ, capture_output=True, text=True, timeout=300
    )


# --- make_results --------------------------------------------------------------------------------------------------


def make_pages(results: Path, out: Path) -> tuple[str, str]:
    out.mkdir()
    done = script("make_results.py", "--results", results, "--out", out)
    assert done.returncode == 0, done.stderr
    return (out / "results.md").read_text(), (out / "performance.md").read_text()


def measured(dice: float) -> dict[str, float]:
    return {"DSC": dice, "HD95_mm": 10 * (1 - dice), "ASSD_mm": 2 * (1 - dice), "n_ref": 100}


def write_run(results: Path, trainer: str, configuration: str, seed: int, dice: float, **changes) -> Path:
    folder = results / "hippocampus_fold2"
    folder.mkdir(parents=True, exist_ok=True)
    classes = {"1": dice + 0.01, "2": dice - 0.01}
    cases = [
        {"case": f"case_{i}", "metrics": {key: measured(value + (i - 2) / 100) for key, value in classes.items()}}
        for i in range(5)
    ]
    run = {
        "trainer": trainer,
        "configuration": f"2d_{configuration}_s{seed}",
        "seed": seed,
        "dataset": "Dataset004_Hippocampus",
        "fold": 2,
        "iterations": 1500,
        "cases": {"labeled": 4, "unlabeled": 0 if trainer in LABELED_ONLY else 171, "validation": 25},
        "validation_dice": dice,
        "metric_per_case": cases,
        "foreground_mean": {"Dice": dice},
        "semicon": {"class_names": {"1": "Anterior", "2": "Posterior"}},
        "mean_epoch_seconds": 100.0,
        "peak_memory_mib": 1500,
        "device": "cpu",
        "device_name": "some processor",
        "threads": 2,
        "date": "2026-01-02T03:04:05+00:00",
        "commit": "0123456789ab",
    }
    path = folder / f"{trainer}__2d_{configuration}_s{seed}.json"
    write_json(path, run | changes)
    return path


def write_benchmark(results: Path) -> None:
    def row(trainer: str, labeled: int, seconds: float, memory: float) -> dict:
        times = {"median": seconds, "q1": seconds * 0.9, "q3": seconds * 1.1}
        return {
            "trainer": trainer,
            "labeled_rows": labeled,
            "student_rows": 32,
            "compiled": False,
            "step_seconds": times,
            "draw_seconds": times,
            "peak_memory_mib": memory,
            "libraries_mib": 500.0,
        }

    content = {
        "dataset": "Dataset004_Hippocampus",
        "configuration": "2d_short_s0",
        "fold": 2,
        "seed": 0,
        "warmup": 3,
        "steps": 20,
        "device": "cpu",
        "device_name": "some processor",
        "cpu_count": 2,
        "threads": 2,
        "load_average": 0.1,
        "date": "2026-01-02T03:04:05+00:00",
        "commit": "0123456789ab",
        "versions": {"torch": "2.5.0"},
        "rows": [
            row("nnUNetTrainer", 32, 0.5, 900),
            row(CONTROL, 32, 0.5, 1000),
            row(CONTROL, 16, 0.3, 800),
            row(SP_CON, 16, 0.8, 1250),
        ],
    }
    results.mkdir(parents=True, exist_ok=True)
    write_json(results / "benchmark_step_hippocampus_2d_cpu.json", content)


def line_of(page: str, *texts: str) -> str:
    (line,) = {line for line in page.splitlines() if all(text in line for text in texts)}
    return line


def test_the_committed_pages_are_those_of_the_committed_measurements(tmp_path):
    pages = make_pages(REPOSITORY / "docs" / "results", tmp_path / "docs")
    for name, page in zip(("results.md", "performance.md"), pages, strict=True):
        committed = (REPOSITORY / "docs" / name).read_text()
        assert committed == page, f"docs/{name} is out of date: run `python scripts/make_results.py`"


def test_without_measurements_every_cell_is_not_run(tmp_path):
    page, performance = make_pages(tmp_path / "nothing", tmp_path / "docs")
    rows = [line for line in page.splitlines() if "not run |" in line]
    assert len(rows) == 4 + 3 + 3 * 10 + 4 * 11 + 4 * 10 + 2 * 19
    for row in rows:
        assert row.count("not run") == 5
    assert "python scripts/run_acdc_labels.py -d 027" in page
    assert "12 of 12 runs of this table have not been run" in page
    assert "beats" not in page.split("performance.md)")[1]
    assert page.count("30 of 30 runs of this table have not been run") == 3 + 4
    assert page.count("33 of 33 runs of this table have not been run") == 4 + 2  # local contrast; two networks
    assert "No benchmark is run yet" in performance


def test_the_table_says_who_wins_and_what_is_not_run(tmp_path):
    results = tmp_path / "results"
    for seed, (large, small, teacher) in enumerate(
        [(0.770, 0.740, 0.772), (0.780, 0.750, 0.784), (0.760, 0.730, 0.766)]
    ):
        write_run(results, CONTROL, "short_full", seed, large)
        write_run(results, CONTROL, "short", seed, small)
        write_run(results, MEAN_TEACHER, "short", seed, teacher)  # + 0.004 and + 0.034; the spread is 0.010
    write_run(results, SP_CON, "short", 0, 0.9)  # one seed: no spread, so no claim
    write_benchmark(results)
    page, performance = make_pages(results, tmp_path / "docs")
    page, other_labels = page.split("## One labeled scan")
    other_labels = other_labels[: other_labels.index("## Three draws")]
    assert "not run | not run |" in line_of(other_labels, "| **control, 32 labeled rows**")

    control = line_of(page, "| **control, 32 labeled rows**")
    assert "| 3 of 3 | 0.770 | 0.010 | 1.00x | 1.00x |" in control
    assert "0.60x | 0.80x" in line_of(page, "| **control, 16 labeled rows**")
    teacher = line_of(page, f"- `{MEAN_TEACHER}`")
    assert "does not differ from the control with 32 labeled rows by more than the spread (+0.004" in teacher
    assert (
        "beats the control with 16 labeled rows by more than the spread (+0.034, spread 0.010, n = 3 and 3)" in teacher
    )
    assert teacher.endswith("It beats only the second control.")
    assert "not run | not run |" in line_of(page, f"| `{MEAN_TEACHER}` | 16 |")  # not in this benchmark

    sp_con = line_of(page, f"- `{SP_CON}`")
    assert "beats" not in sp_con
    assert sp_con.count("cannot be compared") == 2
    assert "| 1 of 3 | 0.900 | one seed | 1.60x | 1.25x |" in line_of(page, f"| `{SP_CON}` | 16 | 1 of 3")

    # the tables of `semicon compare`: every method against each control
    assert "| control, 32 labeled rows | Anterior | 0.780 ± 0.010 | 2.200 ± 0.100 | 0.440 ± 0.020 |" in page
    large, small = (
        page.index("MeanTeacher minus control, 32 labeled"),
        page.index("MeanTeacher minus control, 16 labeled"),
    )
    assert "| mean | DSC | +0.004 | +0.004 to +0.004 |" in page[large:small]
    assert "| mean | DSC | +0.034 | +0.034 to +0.034 |" in page[small:]
    first_table = page[: page.index("## Which meta-label")]
    assert first_table.count("minus control, 32 labeled rows") == 3
    assert first_table.count("minus control, 16 labeled rows") == 2

    assert "2 of 12 runs of this table have not been run" in page
    assert "python scripts/run_hippocampus.py -d 004 -c 2d --fold 2\n" in page
    assert "4 labeled, 171 unlabeled, 25 validation scans; 1500 iterations" in page
    assert "| 800 | 720 to 880 | 1.60x | 800 | 1250 | 1.39x |" in line_of(performance, f"`{SP_CON}`")


def test_curves_of_meta_labels_say_which_are_learned(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    rows = [
        {"epoch": e, "gamma": 2.0 + e, "pair_loss_a": 3.0 - e, "weight_a": 0.1, "pair_loss_b": 3.0 + e, "weight_b": 0.2}
        for e in range(2)
    ]
    settings = {
        "gamma_start": 0.49 * 2.9,
        "lambda": {"a": 1, "b": 1},
        "batch_size": 4,
        "num_epochs": 2,
        "num_iterations_per_epoch": 3,
        "learning_rate": 0.001,
        "seed": 0,
    }
    content = {
        "dataset": "Dataset027_ACDC",
        "fold": 0,
        "epochs": rows,
        "device_name": "some processor",
        "date": "2026-01-02T03:04:05+00:00",
        "commit": "0123456789ab",
        "semicon_config": {"settings": {key: {"value": value} for key, value in settings.items()}},
    }
    write_json(results / "acdc_half_labels.json", content)
    page, _ = make_pages(results, tmp_path / "docs")
    assert "all alike have l = 2.900. In the last epoch, it is lower for a (0.900 below). Not yet for b" in page
    assert "| 1 | 3.0 | 2.000 | 0.100 | 4.000 | 0.200 |" in page


def test_the_acdc_run_prints_its_commands(tmp_path):
    done = script("run_acdc_labels.py", "--dry-run")
    assert [line.split()[1] for line in done.stdout.splitlines()] == [
        "nnUNetv2_plan_experiment",
        "nnUNetv2_preprocess",
        "semicon",
        "nnUNetv2_train",
    ]


def test_a_pretraining_is_compared_with_the_controls_and_its_curves_are_shown(tmp_path):
    results = tmp_path / "results"
    for seed, offset in enumerate((-0.01, 0.0, 0.01)):
        write_run(results, CONTROL, "short_full", seed, 0.8 + offset)
        write_run(results, CONTROL, "short", seed, 0.7 + offset)
        write_run(results, CONTROL, "short_from_SPConPretrain", seed, 0.83 + offset)
    epochs = [
        {"epoch": e, "val_loss": 5.0 - e, "val_alignment_position": 1.5, "val_uniformity_position": -2.5}
        for e in range(2)
    ]
    pacing = [
        {"epoch": 2, "gamma": 3.0, "label": label, "positive": weight, "negative": 0.25}
        for label, weight in (("patient", 0.5), ("position", 0.75))
    ]
    path = results / "hippocampus_fold2" / "nnUNetTrainerSPConPretrain__2d_short_pretrain_s0.json"
    write_json(path, {"seed": 0, "epochs": epochs, "pacing": pacing})
    page, _ = make_pages(results, tmp_path / "docs")
    section = page[page.index("## Pre-training") : page.index("## One labeled scan")]
    assert "| 16 | 3 of 3 | 0.830 | 0.010 |" in line_of(section, f"| `{CONTROL}`, from SP-Con, linear")
    sentence = line_of(section, f"- `{CONTROL}`, from SP-Con, linear")
    assert "beats the control with 32 labeled rows by more than the spread (+0.030" in sentence
    assert "control, 16 labeled rows, from SP-Con, linear minus control, 16 labeled rows, paired" in section
    assert "| SP-Con, linear | 0 | 1 | 5.000 | 1.500 | -2.500 |  |  |" in section
    assert "| SP-Con, linear | 0 | 2 | 4.000 | 1.500 | -2.500 | 0.750 | 0.250 |" in section


def test_a_method_that_is_worse_is_reported_so(tmp_path):
    results = tmp_path / "results"
    for seed, offset in enumerate((-0.01, 0.0, 0.01)):
        write_run(results, CONTROL, "short_full", seed, 0.8 + offset)
        write_run(results, CONTROL, "short", seed, 0.7 + offset)
        write_run(results, SP_CON, "short", seed, 0.75 + 0.1 * offset)
    sentence = line_of(make_pages(results, tmp_path / "docs")[0], f"- `{SP_CON}`")
    assert "is worse than the control with 32 labeled rows by more than the spread (-0.050, spread 0.010" in sentence
    assert "it beats the control with 16 labeled rows" in sentence


def test_a_training_of_two_networks_has_two_lines_and_counts_once(tmp_path):
    results = tmp_path / "results"
    for seed, offset in enumerate((-0.01, 0.0, 0.01)):
        write_run(results, CONTROL, "short_full", seed, 0.8 + offset)
        write_run(results, CONTROL, "short", seed, 0.7 + offset)
        run = write_run(results, "nnUNetTrainerMCSC", "short", seed, 0.75 + offset)
        write_json(run.with_name(f"{run.stem}__second.json"), read_json(run) | {"foreground_mean": {"Dice": 0.6}})
    page, _ = make_pages(results, tmp_path / "docs")
    section = page[page.index("## Two networks") :]
    section = section[: section.index("### 1 of 175")]
    assert "| 16 | 3 of 3 | 0.750 | 0.010 |" in line_of(section, "| `nnUNetTrainerMCSC` |")
    assert "| 16 | 3 of 3 | 0.600 | 0.000 |" in line_of(section, "| `nnUNetTrainerMCSC`, Transformer |")
    assert "MCSC, Transformer minus control, 32 labeled rows, paired" in section
    assert "24 of 33 runs of this table have not been run" in section


def test_a_training_that_was_made_again_stands_beside_the_first_and_in_no_table(tmp_path):
    results = tmp_path / "results"
    write_run(results, CONTROL, "short", 0, 0.71)
    write_run(results / "repeated", CONTROL, "short", 0, 0.64, device_name="another processor")
    page, _ = make_pages(results, tmp_path / "docs")
    tables, _, again = page.partition("## The same training again")
    assert "0.640" not in tables
    line = line_of(again, f"`{CONTROL}`", "2d_short_s0")
    assert "| 2 | 0.710 | 0.640 | some processor | another processor |" in line


def test_a_repeat_without_its_first_run_is_refused(tmp_path):
    write_run(tmp_path / "repeated", CONTROL, "short", 0, 0.64)
    done = script("make_results.py", "--results", tmp_path, "--out", tmp_path)
    assert done.returncode == 1
    assert "repeats a run whose file" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results.md").exists()


def test_a_table_names_the_runs_of_another_processor(tmp_path):
    results = tmp_path / "results"
    for seed in (0, 1):
        write_run(results, CONTROL, "short", seed, 0.71)
    write_run(results, "nnUNetTrainerMCSC", "short", 1, 0.73)
    page, _ = make_pages(results, tmp_path / "docs")
    assert "except" not in page.partition("Two networks")[2]
    write_run(results, "nnUNetTrainerMCSC", "short", 1, 0.73, device_name="another processor")
    page, _ = make_pages(results, tmp_path / "again")
    line = line_of(page.partition("Two networks")[2], "except")
    assert "All on some processor, except `nnUNetTrainerMCSC`, seed 1 (another processor)." in line


def test_runs_without_unlabeled_scans_stand_beside_the_others(tmp_path):
    results = tmp_path / "results"
    for trainer in (*LABELED_ONLY, "nnUNetTrainerMCSC"):
        write_run(results, trainer, "short", 0, 0.7)
    page, _ = make_pages(results, tmp_path / "docs")
    for trainer in ("nnUNetTrainerSwinUNet", "nnUNetTrainerMCSC", "nnUNetTrainerSupervisedLocal"):
        assert f"| `{trainer}` | 16 | 1 of 3 | 0.700 |" in page


def test_runs_of_different_length_do_not_stand_in_one_table(tmp_path):
    write_run(tmp_path / "results", CONTROL, "short", 0, 0.7)
    write_run(tmp_path / "results", SP_CON, "short", 0, 0.9, iterations=3000)
    done = script("make_results.py", "--results", tmp_path / "results", "--out", tmp_path)
    assert done.returncode == 1
    assert "'iterations' is 3000 in nnUNetTrainerSPCon__2d_short_s0.json and 1500" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results.md").exists()


# --- run_hippocampus -----------------------------------------------------------------------------------------------


def dry_run(tiny: Tiny, out: Path, *words) -> subprocess.CompletedProcess:
    return script("run_hippocampus.py", "-d", "901", "--fold", 0, "--dry-run", "--out", out, *words, env=tiny.env)


def commands_of(done: subprocess.CompletedProcess) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [line.removeprefix("$ ") for line in done.stdout.splitlines() if line.startswith("$ ")]


def test_a_dry_run_prints_the_commands_of_all_cells_seed_by_seed(prepared, tmp_path):
    commands = commands_of(dry_run(prepared, tmp_path))
    configure = "semicon configure -d 901 -c 2d --name"
    length = "num_epochs=6 num_val_iterations_per_epoch=5 save_every=1"
    assert commands[:2] == [
        f"{configure} 2d_short_full --set batch_size=32 {length} --seeds 0,1,2",
        f"{configure} 2d_short --set batch_size=32 labeled_per_step=16 {length} --seeds 0,1,2",
    ]
    rows = [(CONTROL, "2d_short_full"), (CONTROL, "2d_short"), (MEAN_TEACHER, "2d_short"), (SP_CON, "2d_short")]
    trained = [command for command in commands if command.startswith("nnUNetv2_train")]
    assert trained[:12] == [
        f"nnUNetv2_train 901 {name}_s{seed} 0 -tr {trainer} -device cpu" for seed in range(3) for trainer, name in rows
    ]
    pretrained, fine_tuned = f"{SP_CON}Pretrain", "2d_short_from_SPConPretrain"
    model = f"{pretrained}__nnUNetPlans__2d_short_pretrain"
    weights = prepared.results / "Dataset901_Tiny" / f"{model}_s0" / "fold_0" / "checkpoint_final.pth"
    assert trained[12:14] == [
        f"nnUNetv2_train 901 2d_short_pretrain_s0 0 -tr {pretrained} -device cpu",
        f"nnUNetv2_train 901 {fine_tuned}_s0 0 -tr {CONTROL} -device cpu -pretrained_weights {weights}",
    ]
    # one pre-training per seed serves the fine-tuning and the joint training
    assert sum(f" -tr {pretrained} " in command and "pretrain_s0" in command for command in trained) == 1
    assert any(command.startswith(f"nnUNetv2_train 901 {fine_tuned}_s0 0 -tr {SP_CON} ") for command in trained)
    assert len(trained) == 12 + 2 * 3 + 2 * 3 + 2 * 4 * 3 + 2 * 3

    predicted = f"TEMPORARY/{SP_CON}__{fine_tuned}_s2"
    assert commands[-3:] == [
        f"nnUNetv2_predict -d 901 -c {fine_tuned}_s2 -f 0 -tr {SP_CON} -i TEMPORARY/images -o {predicted} "
        "-device cpu -npp 1 -nps 1",
        f"nnUNetv2_evaluate_folder TEMPORARY/labels {predicted} -djfile {predicted}/dataset.json "
        f"-pfile {predicted}/plans.json -np 1",
        f"semicon evaluate {predicted} TEMPORARY/labels",
    ]
    assert not list(prepared.results.rglob("*s2*"))


def test_finished_cells_are_skipped_and_cells_can_be_chosen(prepared, tmp_path):
    (tmp_path / f"{SP_CON}__2d_short_s0.json").write_text("{}")
    commands = commands_of(dry_run(prepared, tmp_path, "--only", "SPCon__2d_short_s"))
    trained = [command.split()[2] for command in commands if command.startswith("nnUNetv2_train")]
    assert trained == ["2d_short_s1", "2d_short_s2"]
    done = dry_run(prepared, tmp_path, "--only", "SPCom")
    assert done.returncode == 1
    assert "--only SPCom fits no cell" in done.stderr


def test_a_pretraining_of_another_fold_serves_this_one(prepared, tmp_path):
    words = ["--only", f"{CONTROL}__2d_short_from_SPConPretrain_s0", "--pretraining-fold", 3]
    start, run = (c for c in commands_of(dry_run(prepared, tmp_path, *words)) if c.startswith("nnUNetv2_train"))
    assert start == f"nnUNetv2_train 901 2d_short_pretrain_s0 3 -tr {SP_CON}Pretrain -device cpu"
    assert run.split()[3] == "0"
    assert "2d_short_pretrain_s0/fold_3/checkpoint_final.pth" in run


def test_a_stage_may_start_from_another(prepared, tmp_path):
    words = ["--table", "supervised_local", "--only", "_global_exact_s0", "--pretraining-fold", 3]
    encoder, local, run = (
        c for c in commands_of(dry_run(prepared, tmp_path, *words)) if c.startswith("nnUNetv2_train")
    )
    assert encoder == "nnUNetv2_train 901 2d_short_pretrain_hu_s0 3 -tr nnUNetTrainerSimCLRPretrain -device cpu"
    stage = "nnUNetTrainerSupervisedLocalPretrain"  # it sees labels, so its fold is that of the table
    assert local.startswith(f"nnUNetv2_train 901 2d_short_pretrain_global_exact_s0 0 -tr {stage} ")
    assert local.endswith("2d_short_pretrain_hu_s0/fold_3/checkpoint_final.pth")
    assert run.split()[3:6] == ["0", "-tr", CONTROL]
    assert run.endswith("2d_short_pretrain_global_exact_s0/fold_0/checkpoint_final.pth")


def test_both_networks_of_a_training_are_measured(prepared, tmp_path):
    words = ["--table", "mcsc", "--only", "MCSC__2d_short_s0", "CPS__2d_short_s0"]
    commands = commands_of(dry_run(prepared, tmp_path, *words))
    mcsc, cps = "nnUNetTrainerMCSC__2d_short_s0__second", "nnUNetTrainerCPS__2d_short_s0__second"
    assert [command.split()[5] for command in commands if command.startswith("nnUNetv2_train")] == [
        "nnUNetTrainerMCSC",
        "nnUNetTrainerCPS",
    ]
    assert (
        "semicon export -d 901 -c 2d_short_s0 -f 0 -tr nnUNetTrainerMCSC "
        f"-o TEMPORARY/{mcsc}__model --network second" in commands
    )
    predicted = {command for command in commands if "nnUNetv2_predict" in command and "second" in command}
    assert predicted == {
        f"env nnUNet_results=TEMPORARY/{name}__model nnUNetv2_predict -d 901 -c 2d_short_s0 -f 0 -tr {trainer} "
        f"-i TEMPORARY/images -o TEMPORARY/{name} -device cpu -npp 1 -nps 1"
        for name, trainer in ((mcsc, "nnUNetTrainerSwinUNet"), (cps, "nnUNetTrainer"))
    }
    assert f"semicon evaluate TEMPORARY/{mcsc} TEMPORARY/labels" in commands


def test_an_interrupted_training_is_continued(prepared, tmp_path, monkeypatch):
    tiny, out = prepared.fresh(tmp_path), tmp_path / "out"
    words = ["--only", f"{CONTROL}__2d_short_from_SPConPretrain_s0"]
    model = tiny.results / "Dataset901_Tiny" / f"{CONTROL}__nnUNetPlans__2d_short_from_SPConPretrain_s0"
    (model / "fold_0").mkdir(parents=True)
    for file, flag in (("latest", "--c"), ("final", "-pretrained_weights")):  # measured anew, where it is finished
        (model / "fold_0" / f"checkpoint_{file}.pth").touch()
        _, training = (c for c in commands_of(dry_run(tiny, out, *words)) if c.startswith("nnUNetv2_train"))
        assert training.split()[8] == flag

    monkeypatch.syspath_prepend(SCRIPTS)
    from run_hippocampus import epoch_seconds

    for log, epochs in (("2026_9_1", ((0, 1.5), (1, 2.5))), ("2026_11_1", ((1, 3.5), (2, 4.5)))):
        lines = [f"x: Epoch {epoch} \nx: train_loss 1 \nx: Epoch time: {seconds} s \n" for epoch, seconds in epochs]
        (tmp_path / f"training_log_{log}.txt").write_text("".join([*lines, f"x: Epoch {epochs[-1][0] + 1} \n"]))
    assert epoch_seconds(tmp_path, 3) == [1.5, 3.5, 4.5]


def test_a_second_network_is_measured_without_training_again(prepared, tmp_path):
    tiny, out = prepared.fresh(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "nnUNetTrainerMCSC__2d_short_s0.json").write_text("{}")
    words = ["--table", "mcsc", "--only", "MCSC__2d_short_s0"]
    assert any(command.startswith("nnUNetv2_train") for command in commands_of(dry_run(tiny, out, *words)))
    model = tiny.results / "Dataset901_Tiny" / "nnUNetTrainerMCSC__nnUNetPlans__2d_short_s0"
    (model / "fold_0").mkdir(parents=True)
    (model / "fold_0" / "checkpoint_final.pth").touch()
    commands = commands_of(dry_run(tiny, out, *words))
    assert [command.split()[0] for command in commands] == [
        "semicon",  # configure
        "semicon",  # export
        "env",
        "nnUNetv2_evaluate_folder",
        "semicon",  # evaluate
    ]


def test_what_the_runs_need_is_named(prepared, tmp_path):
    tiny = prepared.fresh(tmp_path)
    for words, sentence in (
        (["--fold", 5], "has no fold 5, only 0 to 0"),
        (["-c", "3d_lowres"], "`nnUNetv2_plan_and_preprocess -d 901 -c 3d_lowres`"),
    ):
        done = dry_run(tiny, tmp_path / "out", *words)
        assert done.returncode == 1
        assert sentence in done.stderr
    splits = tiny.preprocessed_dataset / "splits_final.json"
    write_json(splits, [{"train": fold["train"], "val": fold["val"]} for fold in read_json(splits)])
    done = dry_run(tiny, tmp_path / "out")
    assert done.returncode == 1
    assert "lists no unlabeled cases" in done.stderr
    assert "Traceback" not in done.stderr


# --- benchmark_step ------------------------------------------------------------------------------------------------


def test_the_benchmark_measures_every_trainer(prepared, tmp_path):
    from nnunet_semicon import trainers

    out = tmp_path / "benchmark_step_tiny.json"
    words = ["-d", "901", "-c", "2d_short", "--steps", 2, "--warmup", 1, "--out", out]
    before = sorted(prepared.root.rglob("*"))
    done = script("benchmark_step.py", *words, env=prepared.env)
    assert done.returncode == 0, done.stderr
    assert sorted(prepared.root.rglob("*")) == before

    content = json.loads(out.read_text())
    rows = content["rows"]
    assert [(row["trainer"], row["labeled_rows"], row["student_rows"]) for row in rows[:3]] == [
        ("nnUNetTrainer", 4, 4),
        (CONTROL, 4, 4),
        (CONTROL, 2, 2),
    ]
    assert {row["trainer"] for row in rows} == {"nnUNetTrainer", *trainers.__all__}
    for row in rows:
        step = row["step_seconds"]
        assert 0 < step["q1"] <= step["median"] <= step["q3"]
        assert row["peak_memory_mib"] > row["libraries_mib"] > 100
        assert f"`{row['trainer']}`" in done.stdout
    for key in ("device_name", "cpu_count", "threads", "date", "commit", "seed", "steps", "warmup"):
        assert content[key] not in (None, "")
    assert set(content["versions"]) == {"torch", "nnunetv2", "nnunet_semicon"}
    assert content["configuration"] in make_pages(tmp_path, tmp_path / "docs")[1]


@pytest.mark.parametrize(("words", "sentence"), [(["--steps", "1"], "--steps 1"), (["-c", "2d_shrt"], "2d_short")])
def test_the_benchmark_refuses_in_one_sentence(prepared, words, sentence):
    done = script("benchmark_step.py", "-d", "901", "-c", "2d_short", *words, env=prepared.env)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_the_benchmark_of_the_losses_fills_its_page(tmp_path):
    results = tmp_path / "results"
    file = results / "benchmark_losses_cpu.json"
    script("benchmark_losses.py", "--sizes", "64", "300", "--dimensions", "64", "--out", file)
    content = read_json(file)
    assert [row["n"] for row in content["sizes"]] == [64, 300]
    for row in content["sizes"]:
        assert row["seconds"].keys() == row["mib"].keys() == {"streamed", "matrix", "pytorch-metric-learning"}
        assert min(row["seconds"].values()) > 0
    for error in content["errors"]:
        assert error["loss"] < 1e-5
        assert error["gradient"] < 1e-5
    _, performance = make_pages(results, tmp_path / "docs")
    assert "| 300 | 64 |" in performance
    assert "| SupCon, no background anchors |" in performance
    assert (tmp_path / "docs" / "figures" / "losses.png").stat().st_size > 5000
