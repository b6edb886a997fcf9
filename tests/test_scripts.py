import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tiny import read_json, write_json

REPOSITORY = Path(__file__).parent.parent
SCRIPTS = REPOSITORY / "scripts"
CONTROL = "nnUNetTrainerSupervisedControl"
MCSC = "nnUNetTrainerMCSC"
MEAN_TEACHER = "nnUNetTrainerMeanTeacher"
SP_CON = "nnUNetTrainerSPCon"


def script(name: str, *words, env: dict | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPTS / name, *words]
    return subprocess.run(
        [str(word) for word in command], env=env or os.environ, capture_output=True, text=True, timeout=300
    )


# --- make_results --------------------------------------------------------------------------------------------------

sys.path.append(str(SCRIPTS))
import make_labeled_scans_figure  # noqa: E402  in this process: a start costs more than the work
from make_results import main as make_results  # noqa: E402

PAGE = "# Results\n\n<!-- table: hippocampus -->\n<!-- end -->\n\nBy hand.\n"
ROWS = {
    "control 32": {"trainer": CONTROL, "configuration": "2d_short_full"},
    "control 16": {"trainer": CONTROL, "configuration": "2d_short"},
    "MeanTeacher": {"trainer": MEAN_TEACHER, "configuration": "2d_short"},
    "SPCon": {"trainer": SP_CON, "configuration": "2d_short"},
    "SPCon, position": {"trainer": SP_CON, "configuration": "2d_short_position", "compared_with": "SPCon"},
    "MCSC": {"trainer": MCSC, "configuration": "2d_short"},
    "MCSC, second": {"trainer": MCSC, "configuration": "2d_short", "network": "second", "drawn": False},
}
TABLE = {
    "columns": {"hippocampus_fold2": "4 labeled scans"},
    "baselines": ["control 32", "control 16"],
    "rows": ROWS,
}


def write_pages(
    results: Path,
    out: Path,
    page: str = PAGE,
    tables: dict | None = None,
    curves: dict | None = None,
    sweeps: dict | None = None,
) -> int:
    tables = {"hippocampus": TABLE} if tables is None else tables
    results.mkdir(parents=True, exist_ok=True)
    content = {"tables": tables, "curves": curves or {}, "sweeps": sweeps or {}}
    write_json(results / "tables.yaml", content)  # JSON is YAML
    out.mkdir(exist_ok=True)
    (out / "results.md").write_text(page)
    return make_results(["--results", str(results), "--out", str(out)])


def results_page(results: Path, out: Path, **content) -> str:
    assert write_pages(results, out, **content) == 0
    return (out / "results.md").read_text()


def performance_page(results: Path, out: Path) -> str:
    results_page(results, out, page="# Results\n", tables={})
    return (out / "performance.md").read_text()


@pytest.fixture
def refused(tmp_path, capsys) -> Callable[..., str]:
    """Run it on ``tmp_path/results``; the page stays as it was, nothing else is written, the sentence is returned."""

    def run(page: str = PAGE, **content) -> str:
        out = tmp_path / "docs"
        assert write_pages(tmp_path / "results", out, page=page, **content) == 1
        assert [path.name for path in out.iterdir()] == ["results.md"]
        assert (out / "results.md").read_text() == page
        return capsys.readouterr().err

    return run


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
        "labeled_per_step": 32 if configuration.endswith("full") else 16,
        "iterations": 1500,
        "seconds_per_iteration": 0.5,
        "cases": {"labeled": 4, "unlabeled": 0 if trainer == CONTROL else 171, "validation": 25},
        "metric_per_case": cases,
        "semicon": {"class_names": {"1": "Anterior", "2": "Posterior"}},
        "peak_memory_mib": 1500,
        "device": "cpu",
        "processor": "some processor",
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


def test_the_committed_pages_are_in_step_with_the_committed_measurements(tmp_path):
    committed, copy = REPOSITORY / "docs", tmp_path / "docs"
    shutil.copytree(committed, copy)
    done = script("make_results.py", "--results", copy / "results", "--out", copy)  # as a user starts it
    assert done.returncode == 0, done.stderr
    names = {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()} - {Path("figures/losses.png")}
    for name in sorted(names):
        there = committed / name
        assert there.is_file(), f"docs/{name} is missing: run `python scripts/make_results.py`"
        same = there.read_bytes() == (copy / name).read_bytes()
        assert same, f"docs/{name} is out of date: run `python scripts/make_results.py`"


@pytest.mark.parametrize("name", ["results.md", "methods/mcsc.md", "methods/plgcl.md"])
def test_a_wrong_number_in_a_committed_page_is_refused(tmp_path, capsys, name):
    copy = tmp_path / "docs"
    shutil.copytree(REPOSITORY / "docs", copy)
    page = copy / name
    text, changed = re.subn(
        r"(0\.\d\d)(\d)( ± \S+<!--)", lambda m: f"{m[1]}{(int(m[2]) + 1) % 10}{m[3]}", page.read_text(), count=1
    )
    assert changed
    page.write_text(text)
    assert make_results(["--results", str(copy / "results"), "--out", str(copy)]) == 1
    sentence = capsys.readouterr().err
    assert f"{page.name} says 0." in sentence
    assert "the measured value is 0." in sentence


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield file and anchor of every link of a page to another page of the repository, or to itself."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http", "mailto")):
            name, _, anchor = target.partition("#")
            yield (page.parent / name).resolve() if name else page, anchor


def test_links_between_the_pages_lead_somewhere():
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
    for page in pages:
        for file, anchor in links(page):
            assert file.exists(), f"{page} links to {file}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
                anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in anchors, f"{page} links to #{anchor} in {file}"


def test_without_a_benchmark_its_command_is_named(tmp_path):
    assert "No benchmark is run yet" in performance_page(tmp_path / "results", tmp_path / "docs")


def write_three_seeds(results: Path) -> None:
    for seed, (large, small, teacher) in enumerate(
        [(0.770, 0.740, 0.772), (0.780, 0.750, 0.784), (0.760, 0.730, 0.766)]
    ):
        write_run(results, CONTROL, "short_full", seed, large)
        write_run(results, CONTROL, "short", seed, small)
        write_run(results, MEAN_TEACHER, "short", seed, teacher)
    write_run(results, SP_CON, "short", 0, 0.9)
    for seed in (0, 1):
        write_run(results, SP_CON, "short_position", seed, 0.8)


def test_a_table_shows_mean_spread_cost_and_what_is_not_run(tmp_path):
    results = tmp_path / "results"
    write_three_seeds(results)
    write_benchmark(results)
    table = {"hippocampus": TABLE | {"benchmark": "benchmark_step_hippocampus_2d_cpu.json"}}
    page = results_page(results, tmp_path / "docs", tables=table)
    assert page.startswith("# Results\n")
    assert page.endswith("<!-- end -->\n\nBy hand.\n")
    assert "|  | 4 labeled scans | step time | memory |" in page
    assert "| **control 32** | 0.770 ± 0.010 | 1.00x | 1.00x |" in page
    assert "| **control 16** | 0.740 ± 0.010 | 0.60x | 0.80x |" in page
    assert "| MeanTeacher | 0.774 ± 0.009 | not run | not run |" in page  # not in this benchmark
    assert "| SPCon | 0.900 (1 seed) | 1.60x | 1.25x |" in page
    assert "| SPCon, position | 0.800 ± 0.000 (2 seeds) | 1.60x | 1.25x |" in page
    assert "| MCSC | not run | not run | not run |" in page
    # a second time, nothing is left of the first
    write_run(results, SP_CON, "short", 0, 0.91)
    again = results_page(results, tmp_path / "docs", page=page, tables=table)
    assert again == page.replace("0.900 (1 seed)", "0.910 (1 seed)")
    assert "| 800 | 720 to 880 | 1.60x | 800 | 1250 | 1.39x |" in (tmp_path / "docs" / "performance.md").read_text()


def test_settings_choose_the_measurement_of_a_step(tmp_path):
    results = tmp_path / "results"
    write_three_seeds(results)
    write_benchmark(results)
    file = results / "benchmark_step_hippocampus_2d_cpu.json"
    content = read_json(file)
    sp_con = content["rows"][-1]
    faster = {"changes": {"lambda.patient": 0}, "step_seconds": {"median": 0.4, "q1": 0.4, "q3": 0.4}}
    write_json(file, content | {"rows": [*content["rows"], sp_con | faster]})
    position = ROWS["SPCon, position"] | {"settings": {"lambda.patient": 0}}
    table = TABLE | {"benchmark": file.name, "rows": ROWS | {"SPCon, position": position}}
    page = results_page(results, tmp_path / "docs", tables={"hippocampus": table})
    assert "| SPCon | 0.900 (1 seed) | 1.60x |" in page
    assert "| SPCon, position | 0.800 ± 0.000 (2 seeds) | 0.80x |" in page


def test_without_a_benchmark_the_trainings_tell_the_cost(tmp_path):
    results = tmp_path / "results"
    write_run(results, CONTROL, "short_full", 0, 0.7)
    for seed, seconds in enumerate((1.0, 2.0)):
        write_run(results, MEAN_TEACHER, "short", seed, 0.7, seconds_per_iteration=seconds, peak_memory_mib=3000)
    write_run(results, SP_CON, "short", 0, 0.7, peak_memory_mib=None)  # `semicon sweep` did not train it
    page = results_page(results, tmp_path / "docs")
    assert "| SPCon | 0.700 (1 seed) | not run | not run |" in page
    assert "| MeanTeacher | 0.700 ± 0.000 (2 seeds) | 3.00x | 2.00x |" in page


def test_the_statistics_of_a_column_stand_in_a_page_of_their_own(tmp_path):
    results = tmp_path / "results"
    write_three_seeds(results)
    results_page(results, tmp_path / "docs")
    page = (tmp_path / "docs" / "results" / "hippocampus_fold2.md").read_text()
    line = "| MeanTeacher | 1 | 0.7840 | 1500 | 1500 | some processor | 2026-01-02 | 0123456789ab |"
    assert line in page
    against = {name: page.partition(f"## Against {name}\n")[2].partition("\n## ")[0] for name in ROWS}
    assert "| control 32 | Anterior | 0.780 ± 0.010 | 2.200 ± 0.100 | 0.440 ± 0.020 |" in against["control 32"]
    for name, difference in (("control 32", "+0.004"), ("control 16", "+0.034")):
        of_teacher = against[name].partition(f"MeanTeacher minus {name}, paired by case")[2]
        assert f"| mean | DSC | {difference} | {difference} to {difference} |" in of_teacher
    assert "control 16 minus control 32" in against["control 32"]
    assert "control 32 minus control 16" not in page
    # an ablation is compared with its method alone
    assert "SPCon, position minus SPCon, paired by case" in against["SPCon"]
    assert page.count("SPCon, position minus") == 1
    assert not any(against[name] for name in ("MeanTeacher", "MCSC", "SPCon, position"))


@pytest.mark.parametrize(
    ("sentence", "problem"),
    [
        ("0.741 ± 0.010<!-- hippocampus_fold2 | control 16 -->", "the measured value is 0.740"),
        ("0.740 ± 0.011<!-- hippocampus_fold2 | control 16 -->", "the measured spread is 0.010"),
        ("0.900 ± 0.000<!-- hippocampus_fold2 | SPCon -->", "the measured spread is unknown"),
        ("0.740<!-- hippocampus_fold2 | control 16 | Anterior -->", "the measured value is 0.750"),
        ("2.61 mm<!-- hippocampus_fold2 | control 16 | mean | HD95_mm -->", "the measured value is 2.60"),
        ("0.740<!-- hippocampus_fold2 | contrl 16 -->", "did you mean 'hippocampus_fold2 | control 16'?"),
        ("0.740<!-- hippocampus_fold0 | control 16 -->", "nothing like that is measured"),
        ("a Dice of 0.74", "names no source of 0.74"),
    ],
)
def test_a_wrong_number_in_a_sentence_is_refused(tmp_path, refused, sentence, problem):
    write_three_seeds(tmp_path / "results")
    assert problem in refused(page=f"{PAGE}\n{sentence}\n")


def test_right_numbers_in_sentences_stay_as_they_are(tmp_path):
    results = tmp_path / "results"
    write_three_seeds(results)
    sentences = (
        "0.740 ±\n0.010<!-- hippocampus_fold2 | control 16 -->, "
        "0.75<!-- hippocampus_fold2 | control 16 | Anterior -->, "
        "2.6 mm<!-- hippocampus_fold2 | control 16 | mean | HD95_mm -->\n"
    )
    assert results_page(results, tmp_path / "docs", page=PAGE + sentences).endswith(sentences)


def test_marks_of_a_table_that_is_not_there_are_refused(refused):
    sentence = refused(page=PAGE.replace("hippocampus", "hippocampos"))
    assert "marks for the tables hippocampos: expected hippocampus" in sentence


def test_the_epochs_of_a_pretraining_are_shown_and_it_is_no_row(tmp_path):
    results = tmp_path / "results"
    (results / "hippocampus_fold2").mkdir(parents=True)
    epochs = [{"epoch": e, "val_loss": 5.0 - e, "other": 1.0} for e in range(2)]
    write_json(results / "hippocampus_fold2" / "SPConPretrain_s0.json", {"seed": 0, "epochs": epochs})
    curves = {
        "start": {"Pre-training": {"files": "hippocampus_fold2/SPConPretrain_s*.json", "columns": {"val_loss": "loss"}}}
    }
    page = results_page(results, tmp_path / "docs", curves=curves)
    assert "| SPCon | not run |" in page
    shown = (tmp_path / "docs" / "results" / "start.md").read_text()
    assert "| training | epoch | loss |" in shown
    assert "| SPConPretrain_s0 | 2 | 4.000 |" in shown


def test_each_network_of_a_training_has_its_row(tmp_path):
    results = tmp_path / "results"
    for seed, offset in enumerate((-0.01, 0.0, 0.01)):
        write_run(results, CONTROL, "short_full", seed, 0.8 + offset)
        run = write_run(results, MCSC, "short", seed, 0.75 + offset)
        second = write_run(results / "other", MCSC, "short", seed, 0.6, network="second")
        second.rename(run.with_name(f"{run.stem}__second.json"))
    page = results_page(results, tmp_path / "docs")
    assert "| MCSC | 0.750 ± 0.010 |" in page
    assert "| MCSC, second | 0.600 ± 0.000 |" in page


def test_a_training_that_was_made_again_stands_beside_the_first_and_in_no_table(tmp_path):
    results = tmp_path / "results"
    write_run(results, CONTROL, "short", 0, 0.71)
    write_run(results / "repeated", CONTROL, "short", 0, 0.64, processor="another processor")
    assert "| **control 16** | 0.710 (1 seed) |" in results_page(results, tmp_path / "docs")
    again = (tmp_path / "docs" / "results" / "repeated.md").read_text()
    assert f"| {CONTROL} | 2d_short_s0 | 2 | 0.710 | 0.640 | some processor | another processor |" in again


def test_a_repeat_without_its_first_run_is_refused(tmp_path, refused):
    write_run(tmp_path / "results" / "repeated", CONTROL, "short", 0, 0.64)
    assert "repeats a run whose file" in refused()


def test_a_table_marks_the_runs_of_another_processor(tmp_path):
    results = tmp_path / "results"
    for seed in (0, 1):
        write_run(results, CONTROL, "short", seed, 0.71)
    write_run(results, MCSC, "short", 1, 0.73, device_name="another processor")
    page = results_page(results, tmp_path / "docs")
    assert "| **control 16** | 0.710 ± 0.000 (2 seeds) |" in page
    assert "| MCSC | 0.730 (1 seed) † |" in page


def test_runs_of_different_length_do_not_stand_in_one_table(tmp_path, refused):
    write_run(tmp_path / "results", CONTROL, "short", 0, 0.7)
    write_run(tmp_path / "results", SP_CON, "short", 0, 0.9, iterations=3000)
    sentence = refused()
    assert "'iterations' is 1500 in nnUNetTrainerSupervisedControl__2d_short_s0.json and 3000" in sentence


def test_a_run_that_no_row_names_is_refused(tmp_path, refused):
    write_run(tmp_path / "results", SP_CON, "shrt", 0, 0.9)
    sentence = refused()
    assert "belongs to no row: add nnUNetTrainerSPCon 2d_shrt student to tables.yaml" in sentence


def test_the_figure_changes_with_its_numbers_alone(tmp_path):
    results, docs = tmp_path / "results", tmp_path / "docs"
    figure = docs / "figures" / "results_hippocampus.png"
    write_three_seeds(results)
    results_page(results, docs)
    first = figure.read_bytes()
    figure.touch()
    drawn = figure.stat().st_mtime_ns
    write_run(results, MCSC, "short", 0, 0.5, network="second")  # not drawn
    results_page(results, docs)
    assert figure.stat().st_mtime_ns == drawn
    write_run(results, MEAN_TEACHER, "short", 0, 0.5)
    results_page(results, docs)
    assert figure.read_bytes() != first


# --- tables of sweeps ----------------------------------------------------------------------------------------------

SEMICON = "nnUNetTrainerSemicon"
SWEEP_PAGE = "# Results\n\n<!-- table: bench -->\n<!-- end -->\n\nBy hand.\n"
STAGES = {
    "control": {"trainer": CONTROL, "configuration": "2d", "seeds": [0, 1]},
    "control_all": {"trainer": CONTROL, "configuration": "2d", "folds": [6]},
    "mean_teacher": {"trainer": MEAN_TEACHER, "configuration": "2d"},
    "semicon": {"trainer": SEMICON, "configuration": "2d", "seeds": [0, 1, 2]},
    "ablation": {"trainer": SEMICON, "configuration": "2d", "grid": {"threshold": [0.0, 0.95]}},
}
SWEEP = {"dataset": 4, "folds": [1], "seeds": [0], "measure": {"networks": ["student", "teacher"]}, "stages": STAGES}
SWEEP_TABLE = {
    "title": "2 labeled scans",
    "sweeps": {"../bench.yaml": "bench"},
    "control": "control",
    "all_labels": "control_all",
    "baselines": ["control"],
    "rows": {
        "control": "control",
        "mean_teacher": "MeanTeacher",
        "semicon": "Semicon",
        "ablation_threshold0.95": "Semicon, high threshold",
        "control_all": "all labels",
    },
}


def write_measured(
    results: Path, stage: str, dice: float, seed: int = 0, network: str = "student", fold: int = 1, **changes
) -> Path:
    """Write a file as ``semicon sweep`` does, of two cases; ``predict_with`` is a setting of the training."""
    predict_with = changes.pop("predict_with", None)
    settings = {"precision": {"value": "bfloat16"}}
    settings |= {"predict_with": {"value": predict_with}} if predict_with else {}
    training = f"{stage}_s{seed}_fold{fold}"
    run = {
        "training": training,
        "stage": stage,
        "trainer": {"control_all": CONTROL}.get(stage) or STAGES.get(stage, STAGES["semicon"])["trainer"],
        "configuration": f"{stage}_s{seed}",
        "dataset": "Dataset004_Hippocampus",
        "plans": "nnUNetPlans",
        "fold": fold,
        "seed": seed,
        "network": network,
        "peak_memory_mib": 1500,
        "device": "cpu",
        "device_name": "some processor",
        "processor": "some processor",
        "cpu_count": 2,
        "load_average": 1.9,
        "date": "2026-01-02T03:04:05+00:00",
        "commit": "0123456789ab",
        "labeled_per_step": 16,
        "iterations": 4000,
        "cases": {"labeled": 175 if fold == 6 else 2, "unlabeled": 0, "validation": 2},
        "epoch_seconds": [40.0, 50.0],
        "seconds_per_iteration": 0.2,
        "semicon_config": {"settings": settings},
        "metric_per_case": [
            {"case": case, "metrics": {"1": measured(dice + offset + 0.01), "2": measured(dice + offset - 0.01)}}
            for case, offset in (("case_0", -0.02), ("case_1", 0.02))
        ],
        "semicon": {"class_names": {"1": "Anterior", "2": "Posterior"}},
    }
    file = results / "bench" / f"{training}__{network}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(results.parent / "bench.yaml", SWEEP)
    write_json(file, run | changes)
    return file


def write_sweep(results: Path) -> None:
    for seed, dice in enumerate((0.50, 0.52)):
        write_measured(results, "control", dice, seed)
    write_measured(results, "control_all", 0.91, fold=6)
    for seed, (student, teacher) in enumerate([(0.79, 0.80), (0.81, 0.82), (0.83, 0.87)]):
        write_measured(results, "semicon", student, seed)
        write_measured(results, "semicon", teacher, seed, "teacher")


BENCH = {"page": SWEEP_PAGE, "tables": {}, "sweeps": {"bench": SWEEP_TABLE}}


def test_a_table_of_a_sweep_shows_both_networks_and_the_part_of_the_gap_that_is_closed(tmp_path):
    results = tmp_path / "results"
    write_sweep(results)
    page = results_page(results, tmp_path / "docs", **BENCH)
    assert "|  | student | teacher | gap closed | seconds per step |" in page
    assert "| **control** | 0.510 ± 0.014 (2 seeds) | - | 0 % | 0.20 |" in page
    # (0.81 - 0.51) / (0.91 - 0.51) = 75 %
    assert "| Semicon | 0.810 ± 0.020 | 0.830 ± 0.036 | 75 % | 0.20 |" in page
    assert "| MeanTeacher | not run | not run | not run | not run |" in page
    assert "| all labels | 0.910 (1 seed) | - | 100 % | 0.20 |" in page
    assert page.endswith("<!-- end -->\n\nBy hand.\n")


def test_the_network_that_predicts_closes_the_gap(tmp_path):
    results = tmp_path / "results"
    write_sweep(results)
    for network, dice in (("student", 0.59), ("teacher", 0.83)):
        write_measured(results, "mean_teacher", dice, network=network, predict_with="teacher")
    page = results_page(results, tmp_path / "docs", **BENCH)
    assert "| MeanTeacher | 0.590 (1 seed) | 0.830 (1 seed) | 80 % |" in page
    statistics = (tmp_path / "docs" / "results" / "bench.md").read_text()
    assert "| MeanTeacher | 0 | 0.8300 | 4000 |" in statistics
    assert "| mean | DSC | +0.320 | +0.320 to +0.320 |" in statistics.partition("MeanTeacher minus control")[2]


def test_values_of_a_grid_are_rows(tmp_path):
    results = tmp_path / "results"
    write_sweep(results)
    write_measured(results, "ablation_threshold0.95", 0.71)
    page = results_page(results, tmp_path / "docs", **BENCH)
    assert "| Semicon, high threshold | 0.710 (1 seed) | - | 50 % |" in page


def test_a_gap_without_both_ends_is_not_known(tmp_path):
    results = tmp_path / "results"
    write_measured(results, "control", 0.5)
    write_measured(results, "semicon", 0.7)
    page = results_page(results, tmp_path / "docs", **BENCH)
    assert "| Semicon | 0.700 (1 seed) | - | - | 0.20 |" in page
    write_measured(results, "control_all", 0.5, fold=6)  # no gap at all
    assert "| Semicon | 0.700 (1 seed) | - | - | 0.20 |" in results_page(results, tmp_path / "docs", **BENCH)


def test_an_empty_folder_of_a_sweep_gives_a_table_of_rows_that_are_not_run(tmp_path):
    write_measured(tmp_path / "results", "control", 0.5).unlink()
    page = results_page(tmp_path / "results", tmp_path / "docs", **BENCH)
    assert page.count("| not run | not run | not run | not run |") == 5


def test_the_time_of_a_step_leaves_out_disturbed_trainings_or_is_marked(tmp_path):
    results = tmp_path / "results"
    write_sweep(results)
    write_measured(results, "semicon", 0.79, 0, seconds_per_iteration=0.9, load_average=2.1)
    write_measured(results, "semicon", 0.81, 1, seconds_per_iteration=0.9, epoch_seconds=[40.0, 81.0])
    write_measured(results, "semicon", 0.83, 2, seconds_per_iteration=0.4)
    write_measured(results, "control_all", 0.91, fold=6, seconds_per_iteration=0.3, load_average=2.1)
    page = results_page(results, tmp_path / "docs", **BENCH)
    assert "| 75 % | 0.40 |" in page
    assert "| 100 % | 0.30 ‡ |" in page


@pytest.mark.parametrize(
    ("sentence", "problem"),
    [
        ("0.811 ± 0.020<!-- bench | Semicon -->", "the measured value is 0.810"),
        ("0.831<!-- bench | Semicon | teacher -->", "the measured value is 0.830"),
        ("0.830 ± 0.035<!-- bench | Semicon | teacher -->", "the measured spread is 0.036"),
        ("0.510 ± 0.013<!-- bench | control | student -->", "the measured spread is 0.014"),
        ("0.510<!-- bench | control | teacher -->", "nothing like that is measured"),
        ("76 %<!-- bench | Semicon | gap -->", "the measured value is 75"),
        ("0.811<!-- bench | Semicon | Anterior -->", "the measured value is 0.820"),
        ("0.81<!-- bench | Semicn -->", "did you mean 'bench | Semicon'?"),
        ("0.81<!-- bench | MeanTeacher -->", "nothing like that is measured"),
    ],
)
def test_a_wrong_number_of_a_sweep_in_a_sentence_is_refused(tmp_path, refused, sentence, problem):
    write_sweep(tmp_path / "results")
    assert problem in refused(**BENCH | {"page": f"{SWEEP_PAGE}\n{sentence}\n"})


def test_right_numbers_of_a_sweep_stay_as_they_are_and_the_readme_is_checked_too(tmp_path, capsys):
    results, docs = tmp_path / "results", tmp_path / "docs"
    write_sweep(results)
    sentences = (
        "0.81 ± 0.02<!-- bench | Semicon -->, 0.830 ± 0.036<!-- bench | Semicon | teacher -->, "
        "75 %<!-- bench | Semicon | gap -->, 0.910<!-- bench | all labels | student -->, "
        "1.8 mm<!-- bench | Semicon | Anterior | HD95_mm -->\n"
    )
    assert results_page(results, docs, **BENCH | {"page": SWEEP_PAGE + sentences}).endswith(sentences)
    (tmp_path / "README.md").write_text("74 %<!-- bench | Semicon | gap -->")
    assert write_pages(results, docs, **BENCH) == 1
    assert "README.md says 74 %<!-- bench | Semicon | gap -->: the measured value is 75" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"iterations": 1500}, "one table: 'iterations' is 1500"),
        ({"labeled_per_step": 32}, "one table: 'labeled_per_step' is 32"),
        ({"metric_per_case": [{"case": "other", "metrics": {"1": measured(0.5)}}]}, "'validation cases' is ['other']"),
        ({"semicon_config": {"settings": {"precision": {"value": "float32"}}}}, "'precision' is float32"),
        ({"cases": {"labeled": 4}}, "one row: 'labeled scans' is 4"),
        ({"predict_with": "teacher"}, "one row: 'predict_with' is teacher"),
    ],
)
def test_trainings_that_cannot_be_compared_are_refused(tmp_path, refused, changes, problem):
    write_sweep(tmp_path / "results")
    write_measured(tmp_path / "results", "control", 0.52, 1, **changes)
    sentence = refused(**BENCH)
    assert "control_s1_fold1__student.json and control_s0_fold1__student.json cannot stand in" in sentence
    assert problem in sentence


def test_a_row_has_one_fold_and_a_table_may_choose_it(tmp_path, refused):
    results = tmp_path / "results"
    write_sweep(results)
    write_measured(results, "control", 0.7, fold=2)
    stages = STAGES | {"control": STAGES["control"] | {"folds": [1, 2]}}
    write_json(tmp_path / "bench.yaml", SWEEP | {"stages": stages})
    assert "one row: 'fold' is 2" in refused(**BENCH)
    tables = {
        "bench": SWEEP_TABLE | {"folds": [1, 6]},
        "more": SWEEP_TABLE | {"folds": [2, 6], "rows": {"control": "control", "control_all": "all labels"}},
    }
    page = SWEEP_PAGE + SWEEP_PAGE.replace("bench", "more")
    content = {"page": page, "tables": {}, "sweeps": tables}
    first, _, second = results_page(results, tmp_path / "docs", **content).partition("table: more")
    assert "| **control** | 0.510 ± 0.014 (2 seeds) |" in first
    assert "| **control** | 0.700 (1 seed) |" in second


def test_a_file_of_no_row_and_a_row_of_no_stage_are_refused(tmp_path, refused):
    results = tmp_path / "results"
    write_sweep(results)
    file = write_measured(results, "ablation_threshold0.0", 0.7)  # a stage that the table leaves out
    assert f"{file} belongs to no row" in refused(**BENCH)
    file.unlink()
    table = SWEEP_TABLE | {"rows": SWEEP_TABLE["rows"] | {"semicn": "Semicon"}}
    sentence = refused(**BENCH | {"sweeps": {"bench": table}})
    assert "has a row of 'semicn', which is no stage of its sweeps; did you mean 'semicon'?" in sentence


def lines_of(points: make_labeled_scans_figure.Points) -> dict[str, tuple[list, list]]:
    """Return title -> x and y of the lines in the legend."""
    (axis,) = make_labeled_scans_figure.draw(points).axes
    labels = axis.get_legend_handles_labels()[1]
    drawn = {line.get_label(): line for line in axis.get_lines()}
    return {label: (list(drawn[label].get_xdata()), list(drawn[label].get_ydata())) for label in labels}


def test_the_figure_of_labeled_scans_draws_what_is_there(tmp_path):
    bench = tmp_path / "results" / "bench"
    write_sweep(tmp_path / "results")  # the teacher does not predict: it is not drawn
    write_measured(tmp_path / "results", "mean_teacher", 0.3)
    more = {"cases": {"labeled": 1, "unlabeled": 174, "validation": 2}, "fold": 0}
    write_measured(tmp_path / "other", "semicon", 0.6, **more)
    points = make_labeled_scans_figure.read([bench, tmp_path / "other" / "bench"])
    assert {stage: sorted(of_stage) for stage, of_stage in points.items()} == {
        "control": [2],
        "control_all": [175],
        "semicon": [1, 2],
    }
    lines = lines_of(points)
    assert [x for x, _ in lines.values()] == [[1, 2], [2]]
    assert [y for _, y in lines.values()] == [pytest.approx([0.6, 0.81]), pytest.approx([0.51])]
    out = tmp_path / "figures" / "labeled_scans.png"
    assert make_labeled_scans_figure.main([str(bench), "--out", str(out)]) == 0
    assert out.stat().st_size > 5000
    for path in bench.glob("*.json"):
        if not path.name.startswith("control_all"):
            path.unlink()
    assert make_labeled_scans_figure.main([str(bench), "--out", str(out)]) == 0


def test_without_results_there_is_no_figure_of_labeled_scans(tmp_path, capsys):
    assert make_labeled_scans_figure.main([str(tmp_path), "--out", str(tmp_path / "figure.png")]) == 1
    assert "holds no JSON file of the stages semicon, control, control_all" in capsys.readouterr().err
    assert not (tmp_path / "figure.png").exists()


# --- benchmark_step ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_benchmark_measures_every_trainer(training, tmp_path):
    from nnunet_semicon import trainers
    from tests.harness import configure

    out = tmp_path / "benchmark_step_tiny.json"
    configure(training, "half", "2d_short", labeled_per_step=2)
    words = ["-d", "901", "-c", "half", "--steps", 2, "--warmup", 1, "--out", out]
    before = sorted(training.root.rglob("*"))
    done = script("benchmark_step.py", *words, env=training.env)
    assert done.returncode == 0, done.stderr
    assert sorted(training.root.rglob("*")) == before

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
    assert content["configuration"] in performance_page(tmp_path, tmp_path / "docs")


@pytest.mark.slow
def test_the_effects_on_a_cpu_are_ratios_within_a_round(prepared, tmp_path):
    out = tmp_path / "benchmark_effects_hippocampus_2d_cpu.json"
    words = ["-d", "901", "-c", "2d_short", "--effects", "--steps", 4, "--warmup", 1, "--out", out]
    done = script("benchmark_step.py", *words, env=prepared.env)
    assert done.returncode == 0, done.stderr
    content = read_json(out)
    for variant in content["variants"].values():
        assert len(variant["steps_per_second"]) == 2
        assert min(variant["steps_per_second"]) > 0
        assert variant["peak_memory_mib"] > 100
    trained = {(v["jobs"], v["threads"], v["precision"], v["keeps_memory"]) for v in content["variants"].values()}
    assert {(1, 2, "float32", False), (2, 1, "bfloat16", True)} <= trained

    content["variants"]["two_jobs"]["steps_per_second"] = [3.0, 30.0]
    content["variants"]["two_threads"]["steps_per_second"] = [2.0, 10.0]  # another load: ratios of single rounds count
    write_json(out, content)
    page = performance_page(tmp_path, tmp_path / "docs")
    assert "| two jobs of one thread instead of one job of two threads | 2.25x | 1.50x to 3.00x |" in page


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--steps", "1"], "--steps 1"),
        (["-c", "2d_shrt"], "2d_short"),
        (["--effects", "--device", "cuda"], "expected --device cpu"),
    ],
)
def test_the_benchmark_refuses_in_one_sentence(prepared, words, sentence):
    done = script("benchmark_step.py", "-d", "901", "-c", "2d_short", *words, env=prepared.env)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
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
    performance = performance_page(results, tmp_path / "docs")
    assert "| 300 | 64 |" in performance
    assert "| SupCon, no background anchors |" in performance
    assert (tmp_path / "docs" / "figures" / "losses.png").stat().st_size > 5000
