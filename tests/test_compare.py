"""``semicon compare``: its statistics against naive computations, what it reads, writes and refuses."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from scipy.stats import wilcoxon

from nnunet_semicon.cli.main import main
from nnunet_semicon.errors import UserError
from nnunet_semicon.evaluation.compare import compare, is_higher_better
from nnunet_semicon.evaluation.comparison import Comparison, Difference, Mean, Method
from nnunet_semicon.evaluation.comparison_tables import as_json, as_markdown, differences_markdown, means_markdown
from nnunet_semicon.evaluation.runs import find, read_methods, run_of
from nnunet_semicon.evaluation.statistics import RESAMPLES, bootstrap_interval, holm, resampled, signed_rank_p

CONTROL, SPCON, TEACHER = "nnUNetTrainerSupervisedControl", "nnUNetTrainerSPCon", "nnUNetTrainerMeanTeacher"
CASES = [f"case_{i:02d}" for i in range(8)]
METRICS = ("DSC", "Jaccard", "HD95_mm", "ASSD_mm", "HD95_voxel", "ASD_voxel", "VE_ml")
NAMES = {"1": "Anterior", "2": "Posterior"}

Value = Callable[[str, str, str], float | None]


def evaluation(value: Value, cases=CASES, metrics=METRICS, classes=NAMES, n_ref=100) -> dict:
    """What ``semicon evaluate`` writes, as far as the comparison reads it; ``value(case, class, metric)``."""
    entries = [
        {
            "case": case,
            "reference_file": f"{case}.nii.gz",
            "prediction_file": f"{case}.nii.gz",
            "metrics": {key: {"n_ref": n_ref, **{m: value(case, key, m) for m in metrics}} for key in classes},
        }
        for case in cases
    ]
    return {"metric_per_case": entries, "semicon": {"version": "0.1.0", "class_names": dict(classes)}}


def drawn(seed: int, shift: float = 0.0) -> Value:
    """Values in [0, 1] that depend on case, class, metric and seed."""

    def value(case: str, key: str, metric: str) -> float:
        words = [seed, int(case[-2:]), sum(key.encode()), sum(metric.encode())]
        return float(np.random.default_rng(words).random()) + shift

    return value


def write(path: Path, content: Mapping) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_fold(root: Path, trainer: str, configuration: str, fold: int, content: Mapping) -> Path:
    """Returns the model folder."""
    model = root / f"{trainer}__nnUNetPlans__{configuration}"
    write(model / f"fold_{fold}" / "validation" / "evaluation.json", content)
    return model


def method(name: str, *values: Value, **kwargs) -> Method:
    runs = [run_of({"": evaluation(v, **kwargs)}, f"{name}_s{i}", f"{name}_s{i}") for i, v in enumerate(values)]
    return Method(name, tuple(runs))


def the_mean(comparison: Comparison, name: str, label: str, metric: str) -> Mean:
    (row,) = [r for r in comparison.means if (r.method, r.label, r.metric) == (name, label, metric)]
    return row


def the_difference(comparison: Comparison, name: str, label: str, metric: str) -> Difference:
    (row,) = [r for r in comparison.differences if (r.method, r.label, r.metric) == (name, label, metric)]
    return row


@pytest.fixture
def two(tmp_path) -> list[str]:
    """Model folders of two methods with two seeds each, fold 0."""
    for trainer, first in ((CONTROL, 0), (SPCON, 10)):
        for seed in range(2):
            write_fold(tmp_path, trainer, f"2d_short_s{seed}", 0, evaluation(drawn(first + seed)))
    return [str(path) for name in (CONTROL, SPCON) for path in sorted(tmp_path.glob(f"{name}__*"))]


def refusal(capsys, *words: object) -> str:
    """The sentence with which the command refuses."""
    assert main(["compare", *map(str, words)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


# --- statistics ----------------------------------------------------------------------------------------------------


def test_the_interval_is_that_of_a_plain_loop_over_the_same_resamples():
    differences = np.random.default_rng(0).normal(0.1, 1, 25)
    means = sorted(sum(differences[i] for i in row) / 25 for row in resampled(25).tolist())
    position = 0.025 * (RESAMPLES - 1)
    below, rest = int(position), position - int(position)
    naive = [
        means[below] + rest * (means[below + 1] - means[below]),
        means[-1 - below] - rest * (means[-1 - below] - means[-2 - below]),
    ]
    assert bootstrap_interval(differences) == pytest.approx(naive, abs=1e-12)


def test_resamples_draw_every_case_equally_often_and_the_same_each_time():
    indices = resampled(5)
    assert indices.shape == (RESAMPLES, 5)
    assert np.bincount(indices.ravel(), minlength=5) / indices.size == pytest.approx([0.2] * 5, abs=0.01)
    resampled.cache_clear()
    assert np.array_equal(indices, resampled(5))


def test_the_interval_agrees_with_the_normal_one_for_many_cases():
    differences = np.random.default_rng(1).normal(0.3, 2, 400)
    half = 1.96 * differences.std() / 20
    assert bootstrap_interval(differences) == pytest.approx(
        (differences.mean() - half, differences.mean() + half), abs=0.02
    )


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, and 0.04 raised to the one before
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_signed_rank_test_is_exact_and_ignores_zeros():
    differences = np.array([0.3, -0.1, 0.2, 0.5, 0.7, 0.9, -0.4])
    # negative ranks 1 and 4: sums of ranks of 7 that are at most 5 are {}, 1, 2, 3, 4, 5, 1+2, 1+3, 1+4, 2+3: 10
    assert signed_rank_p(differences) == pytest.approx(2 * 10 / 2**7)
    assert signed_rank_p(differences) == pytest.approx(wilcoxon(differences, method="exact").pvalue)
    assert signed_rank_p(np.concatenate([differences, np.zeros(3)])) == signed_rank_p(differences)
    assert signed_rank_p(np.zeros(9)) == 1.0


def test_a_constant_shift_has_a_degenerate_interval():
    result = compare([method("a", drawn(0), drawn(1)), method("b", drawn(0, 0.25), drawn(1, 0.25))], ["DSC"])
    for label in ("1", "2", "mean"):
        row = the_difference(result, "b", label, "DSC")
        assert [row.difference, row.low, row.high] == pytest.approx([0.25] * 3, abs=1e-9)
        assert (row.better, row.equal, row.worse) == (8, 0, 0)


def test_a_method_equals_itself_also_after_averaging_over_seeds():
    # (0.1 + 0.1 + 0.1) / 3 is not 0.1
    result = compare([method("a", lambda *_: 0.1), method("b", *[lambda *_: 0.1] * 3)])
    for row in result.differences:
        assert (row.difference, row.low, row.high, row.p, row.p_holm) == (0, 0, 0, 1, 1)
        assert row.effect.startswith("better in 0 of 8 cases, equal in 8")


def test_differences_are_paired_by_case_after_averaging_over_seeds():
    a, b = (drawn(0), drawn(1), drawn(2)), (drawn(10), drawn(11))
    result = compare([method("a", *a), method("b", *b)], ["HD95_mm"])
    expected = [mean(f(case, "2", "HD95_mm") for f in b) - mean(f(case, "2", "HD95_mm") for f in a) for case in CASES]
    row = the_difference(result, "b", "2", "HD95_mm")
    assert row.difference == pytest.approx(mean(expected))
    assert (row.low, row.high) == pytest.approx(bootstrap_interval(np.array(expected)))
    assert row.p == pytest.approx(wilcoxon(expected).pvalue)
    assert row.better == sum(d < 0 for d in expected)  # a distance: lower is better
    assert row.worse == sum(d > 0 for d in expected)


def test_means_and_spreads_over_seeds_and_folds():
    def fold_of(case: str) -> str:
        return "1" if case in CASES[:3] else "4"

    seeds = [drawn(i) for i in range(3)]
    runs = []
    for i, value in enumerate(seeds):
        contents = {fold: evaluation(value, [c for c in CASES if fold_of(c) == fold]) for fold in ("1", "4")}
        runs.append(run_of(contents, f"a_s{i}", f"a_s{i}"))
    result = compare([Method("a", tuple(runs)), method("b", drawn(7))], ["DSC"])

    def naive(cases, label, value):
        classes = ["1", "2"] if label == "mean" else [label]
        return mean(mean(value(case, key, "DSC") for case in cases) for key in classes)

    for label in ("1", "2", "mean"):
        row = the_mean(result, "a", label, "DSC")
        of_seeds = [naive(CASES, label, value) for value in seeds]
        assert row.mean == pytest.approx(mean(of_seeds))
        assert row.over_seeds == pytest.approx(stdev(of_seeds))
        of_folds = [mean(naive(cases, label, value) for value in seeds) for cases in (CASES[:3], CASES[3:])]
        assert row.over_folds == pytest.approx(stdev(of_folds))
    assert the_mean(result, "b", "mean", "DSC").over_seeds is None
    assert the_mean(result, "b", "mean", "DSC").over_folds is None
    assert "folds 1, 4" in as_markdown(result)
    assert any("single seed of b:" in note for note in result.notes)


def test_holm_counts_every_test_of_the_table():
    methods = [method(name, drawn(i)) for i, name in enumerate("abc")]
    result = compare(methods, ["DSC", "ASSD_mm"])
    p = [row.p for row in result.differences]
    assert len(p) == 2 * 3 * 2
    assert [row.p_holm for row in result.differences] == pytest.approx(holm(p))
    smallest = min(result.differences, key=lambda row: row.p)
    assert smallest.p_holm == pytest.approx(min(1, 12 * smallest.p))


def test_the_magnitude_of_a_signed_error_is_compared():
    result = compare([method("a", lambda *_: -5.0), method("b", lambda *_: 2.0)], ["VE_ml"])
    row = the_difference(result, "b", "1", "VE_ml")
    assert (row.difference, row.better) == (-3, 8)
    assert the_mean(result, "a", "1", "VE_ml").mean == 5
    assert "\\|VE_ml\\|" in means_markdown(result)


def test_directions():
    assert all(map(is_higher_better, ("DSC", "Jaccard", "Dice", "IoU", "NSD_1.5mm", "TP")))
    assert not any(map(is_higher_better, ("HD95_mm", "HD_voxel", "ASD_mm", "ASSD_voxel", "VE_percent", "FP")))
    with pytest.raises(UserError, match="neither more of it nor less"):
        is_higher_better("n_ref")


@pytest.mark.parametrize(
    ("values", "words", "inside"),
    [
        # seeds of the baseline at 0.4 and 0.6: spread 0.141
        ((0.6, 0.6), "inside the seeds' spread", True),
        ((0.7, 0.7), "outside the seeds' spread", False),
        ((0.2, 0.2), "outside the seeds' spread", False),
        ((0.2, 1.2), "inside the seeds' spread", True),  # its own spread is the larger one
        ((0.7,), "seeds' spread unknown", None),
    ],
)
def test_a_difference_inside_the_seeds_spread_is_called_so(values, words, inside):
    def constant(value):
        return lambda *_: value

    result = compare([method("a", constant(0.4), constant(0.6)), method("b", *map(constant, values))], ["DSC"])
    row = the_difference(result, "b", "mean", "DSC")
    assert row.inside_spread is inside
    assert row.effect.endswith(words)
    assert words in differences_markdown(result)


def test_one_class_has_no_mean_and_classes_are_in_the_order_of_their_labels():
    one = compare([method("a", drawn(0), classes={"1": "x"}), method("b", drawn(1), classes={"1": "x"})])
    assert list(one.class_names) == ["1"]
    classes = {"10": "ten", "2": "two", "(1, 2)": "whole"}
    many = compare([method("a", drawn(0), classes=classes), method("b", drawn(1), classes=classes)])
    assert list(many.class_names) == ["(1, 2)", "2", "10", "mean"]


# --- missing classes -----------------------------------------------------------------------------------------------


def missing_in(value: Value, *holes: tuple[str, str]) -> Value:
    return lambda case, key, metric: None if (case, key) in holes else value(case, key, metric)


def test_a_missing_class_is_left_out_of_the_pair_counted_and_named():
    a = missing_in(drawn(0), (CASES[1], "2"))
    b = missing_in(drawn(1), (CASES[1], "2"), (CASES[5], "2"))
    result = compare([method("a", a), method("b", b)], ["DSC", "HD95_mm"])

    row = the_difference(result, "b", "2", "HD95_mm")
    kept = [case for case in CASES if case not in (CASES[1], CASES[5])]
    differences = [b(case, "2", "HD95_mm") - a(case, "2", "HD95_mm") for case in kept]
    assert (row.cases, row.left_out) == (6, (CASES[1], CASES[5]))
    assert row.difference == pytest.approx(mean(differences))
    assert the_mean(result, "b", "2", "DSC").mean == pytest.approx(mean(b(case, "2", "DSC") for case in kept))
    assert the_mean(result, "b", "2", "DSC").missing == (CASES[1], CASES[5])
    assert the_mean(result, "a", "1", "DSC").missing == ()
    assert the_difference(result, "b", "1", "DSC").cases == 8
    assert "Posterior has no value in 1 of 8 cases of a, left out of the pairs: case_01" in result.notes
    assert "Posterior has no value in 2 of 8 cases of b, left out of the pairs: case_01, case_05" in result.notes
    assert "(2 missing)" in means_markdown(result)


def test_the_mean_of_the_classes_is_over_those_that_both_have():
    a = missing_in(drawn(0), (CASES[6], "1"))
    b = missing_in(drawn(1), (CASES[0], "2"), (CASES[3], "1"), (CASES[3], "2"))
    row = the_difference(compare([method("a", a), method("b", b)], ["DSC"]), "b", "mean", "DSC")
    expected = []
    for case in CASES:
        keys = [key for key in "12" if None not in (a(case, key, "DSC"), b(case, key, "DSC"))]
        if keys:
            expected.append(mean(b(case, key, "DSC") - a(case, key, "DSC") for key in keys))
    assert row.left_out == (CASES[3],)
    assert row.difference == pytest.approx(mean(expected))


def test_a_case_that_is_missing_in_one_seed_is_missing():
    hole = (CASES[2], "1")
    result = compare([method("a", drawn(0)), method("b", drawn(1), missing_in(drawn(2), hole))], ["DSC"])
    assert the_difference(result, "b", "1", "DSC").left_out == (CASES[2],)
    assert any("in 1 of 8 cases of b (in at least one seed)" in note for note in result.notes)


def test_a_class_that_a_method_never_finds_makes_its_mean_missing_not_better():
    holes = [(case, "2") for case in CASES]
    result = compare([method("a", drawn(0)), method("b", missing_in(drawn(1), *holes))], ["DSC"])
    assert the_mean(result, "b", "2", "DSC").mean is None
    assert the_mean(result, "b", "mean", "DSC").mean is None
    assert the_mean(result, "b", "1", "DSC").mean is not None
    row = the_difference(result, "b", "2", "DSC")
    assert (row.difference, row.p, row.p_holm, row.effect) == (None, None, None, "no case has both")
    assert len([r for r in result.differences if r.p is not None]) == 2  # 1 and the mean, over class 1
    assert json.loads(as_json(result))  # no NaN


def test_a_class_that_no_run_has_is_no_part_of_the_mean():
    holes = [(case, "2") for case in CASES]
    a, b = (missing_in(drawn(i), *holes) for i in range(2))
    result = compare([method("a", a), method("b", b)], ["DSC"])
    assert the_mean(result, "a", "mean", "DSC").mean == the_mean(result, "a", "1", "DSC").mean
    assert "Posterior has no value in any run and is not part of the mean of the classes" in result.notes


def test_nan_and_infinity_are_missing_too():
    result = compare([method("a", lambda *_: float("nan")), method("b", lambda *_: float("inf"))], ["DSC"])
    assert all(row.mean is None for row in result.means)


# --- what is read --------------------------------------------------------------------------------------------------


def test_seeds_of_a_configuration_are_one_method_in_the_order_given(two):
    methods, notes = read_methods([*two[2:], *two[:2]])
    assert [m.name for m in methods] == [SPCON, CONTROL]
    assert [run.name for run in methods[1].runs] == [f"{CONTROL}__nnUNetPlans__2d_short_s{i}" for i in range(2)]
    assert notes == []
    run = methods[1].runs[1]
    assert run.values[CASES[3]]["2"]["DSC"] == drawn(1)(CASES[3], "2", "DSC")
    assert run.class_names == NAMES
    assert set(run.folds.values()) == {"0"}


def test_names_are_the_shortest_that_tell_methods_apart(tmp_path):
    for trainer, configuration in ((CONTROL, "2d_short_s0"), (CONTROL, "2d_short_full_s0"), (SPCON, "2d_short_s0")):
        write_fold(tmp_path / "a", trainer, configuration, 0, evaluation(drawn(0)))
    methods, _ = read_methods([str(path) for path in sorted((tmp_path / "a").iterdir())])
    assert [m.name for m in methods] == [SPCON, f"{CONTROL} 2d_short_full", f"{CONTROL} 2d_short"]
    other = write_fold(tmp_path / "b", SPCON, "2d_short_s0", 0, evaluation(drawn(0)))
    methods, _ = read_methods([str(tmp_path / "a" / other.name), str(other)])
    assert [m.name for m in methods] == [str(folder / other.name[:-3]) for folder in (tmp_path / "a", tmp_path / "b")]


def test_every_form_of_an_argument_finds_the_same_file(tmp_path):
    model = write_fold(tmp_path, SPCON, "2d", 3, evaluation(drawn(0)))
    fold = model / "fold_3"
    forms = [model, fold, fold / "validation", fold / "validation" / "evaluation.json", f"{model}/"]
    (expected,) = {tuple(find(str(form))) for form in forms}
    assert [(source.run, source.fold) for source in expected] == [(model, "3")]
    pseudo_labels = write(fold / "pseudo_labels" / "evaluation.json", evaluation(drawn(0)))
    assert [(s.file, s.run, s.fold) for s in find(str(pseudo_labels.parent))] == [(pseudo_labels, model, "3")]
    file = write(tmp_path / "predictions" / "evaluation.json", evaluation(drawn(0)))
    assert find(str(file)) == find(str(file.parent))
    assert find(str(file))[0].run == file.parent


def test_files_and_prediction_folders_are_runs_named_after_themselves(tmp_path):
    files = [write(tmp_path / f"tau0.1_s{i}.json", evaluation(drawn(i))) for i in range(2)]
    folder = write(tmp_path / "ensemble" / "evaluation.json", evaluation(drawn(5))).parent
    methods, _ = read_methods([*map(str, files), str(folder)])
    assert [(m.name, len(m.runs)) for m in methods] == [("tau0.1", 2), ("ensemble", 1)]


def test_folds_of_a_run_are_merged(tmp_path):
    for trainer in (CONTROL, SPCON):
        for fold, cases in ((0, CASES[:5]), (1, CASES[5:])):
            model = write_fold(tmp_path, trainer, "2d", fold, evaluation(drawn(len(trainer)), cases))
    methods, _ = read_methods([str(tmp_path / f"{CONTROL}__nnUNetPlans__2d"), f"{model}/fold_1", f"{model}/fold_0"])
    assert [len(m.runs) for m in methods] == [1, 1]
    assert sorted(methods[1].runs[0].values) == CASES
    assert compare(methods, ["DSC"]).cases == tuple(CASES)


def test_other_splits_get_a_note(tmp_path):
    for trainer, border in ((CONTROL, 5), (SPCON, 4)):
        for fold, cases in ((0, CASES[:border]), (1, CASES[border:])):
            write_fold(tmp_path, trainer, "2d", fold, evaluation(drawn(fold), cases))
    methods, _ = read_methods([str(path) for path in tmp_path.iterdir()])
    assert any("different splits" in note for note in compare(methods, ["DSC"]).notes)


# --- half-written files --------------------------------------------------------------------------------------------


def cut(model: Path, fold: int) -> None:
    file = model / f"fold_{fold}" / "validation" / "evaluation.json"
    file.write_text(file.read_text()[:200])


def test_a_damaged_seed_is_left_out_if_another_one_is_whole(two, capsys):
    cut(Path(two[3]), 0)
    assert main(["compare", *two]) == 0
    out = capsys.readouterr().out
    assert f"note: {SPCON}__nnUNetPlans__2d_short_s1 is left out: {two[3]}/fold_0/validation/evaluation.json" in out
    assert f"seeds: {CONTROL} 2, {SPCON} 1" in out


def test_a_damaged_fold_of_the_only_seed_is_left_out_of_all_runs(tmp_path):
    folds = {0: CASES[:4], 1: CASES[4:6], 2: CASES[6:]}
    models = [
        write_fold(tmp_path, trainer, "2d", fold, evaluation(drawn(1), cases))
        for trainer in (CONTROL, SPCON)
        for fold, cases in folds.items()
    ]
    cut(models[-1], 1)
    methods, (note,) = read_methods([str(models[0]), str(models[-1])])
    assert note.startswith(f"fold 1 of all runs is left out: {models[-1]}/fold_1/validation/evaluation.json")
    assert compare(methods, ["DSC"]).cases == (*CASES[:4], *CASES[6:])


def test_an_evaluation_of_a_running_validation_is_left_out(two):
    file = Path(two[3]) / "fold_0" / "validation" / "evaluation.json"
    content = json.loads(file.read_text())
    content["semicon"]["complete"] = False
    del content["metric_per_case"][0]
    write(file, content)
    methods, (note,) = read_methods(two)
    assert [len(m.runs) for m in methods] == [2, 1]
    assert "was made while nnU-Net was still validating" in note


def test_a_fold_that_nobody_has_finished_costs_no_seed(two):
    (Path(two[0]) / "fold_1").mkdir()
    methods, (note,) = read_methods(two)
    assert [len(m.runs) for m in methods] == [2, 2]
    assert note.startswith(f"fold 1 of {CONTROL}__nnUNetPlans__2d_short_s0 is left out")
    assert "semicon evaluate" in note


def test_damaged_only_seeds_are_one_sentence(two, capsys):
    for model in two[2:]:
        cut(Path(model), 0)
    sentence = refusal(capsys, *two)
    assert f"{two[2]}/fold_0/validation/evaluation.json cannot be read" in sentence
    assert "semicon evaluate" in sentence


# --- what is refused -----------------------------------------------------------------------------------------------


def test_one_method_is_nothing_to_compare(two, capsys):
    assert f"only {CONTROL} (2 runs)" in refusal(capsys, *two[:2])


def test_different_cases_are_named(tmp_path, capsys):
    write(tmp_path / "a.json", evaluation(drawn(0)))
    write(tmp_path / "b.json", evaluation(drawn(0), [*CASES[:1], "new_00"]))
    sentence = refusal(capsys, tmp_path / "a.json", tmp_path / "b.json")
    assert f"only in {tmp_path}/a: case_01, case_02, case_03, case_04, case_05 and 2 more" in sentence
    assert f"only in {tmp_path}/b: new_00" in sentence


def test_different_classes_are_named(tmp_path, capsys):
    write(tmp_path / "a.json", evaluation(drawn(0)))
    write(tmp_path / "b.json", evaluation(drawn(0), classes={"1": "Anterior", "3": "Other"}))
    sentence = refusal(capsys, tmp_path / "a.json", tmp_path / "b.json")
    assert f"{tmp_path}/b has the classes 1, 3 in case_00, but {tmp_path}/a has 1, 2" in sentence


def test_different_references_are_refused(tmp_path, capsys):
    write(tmp_path / "a.json", evaluation(drawn(0)))
    write(tmp_path / "b.json", evaluation(drawn(0), n_ref=101))
    sentence = refusal(capsys, tmp_path / "a.json", tmp_path / "b.json")
    assert "class 1 of case_00 has 100 voxels in one and 101 in the other" in sentence


def test_a_case_in_two_folds_is_refused(tmp_path, capsys):
    for fold in (0, 1):
        model = write_fold(tmp_path, SPCON, "2d", fold, evaluation(drawn(0)))
    assert f"{model} has the case case_00 in fold 0 and in fold 1" in refusal(capsys, model)


def test_the_same_run_twice_is_refused(two, capsys):
    assert "is given twice" in refusal(capsys, *two, two[0])
    assert "is given twice" in refusal(capsys, *two, f"{two[0]}/fold_0")


def test_an_unknown_metric_names_the_nearest(two, capsys):
    assert "no metric 'HD95mm'; did you mean 'HD95_mm'?" in refusal(capsys, *two, "--metrics", "DSC", "HD95mm")
    assert "'n_ref' cannot be compared" in refusal(capsys, *two, "--metrics", "n_ref")


def test_nnunets_own_summary_names_the_command(tmp_path, two, capsys):
    summary = {"metric_per_case": [{"metrics": {"1": {"Dice": 0.5}}}], "mean": {}, "foreground_mean": {}}
    fold = tmp_path / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"
    write(fold / "validation" / "summary.json", summary)
    folder = write(tmp_path / "predictions" / "summary.json", summary).parent
    for argument, named in ((fold, fold), (fold.parent, fold.parent), (folder, f"{folder} REF")):
        assert f"run `semicon evaluate {named}` first" in refusal(capsys, *two, argument)
    for name in ("summary.json", "renamed.json"):
        file = write(folder / name, summary)
        assert "semicon evaluate" in refusal(capsys, *two, file)


def test_what_is_no_evaluation_is_refused(tmp_path, two, capsys):
    assert f"did you mean '{Path(two[0]).name}'" in refusal(capsys, *two, f"{two[0]}0")
    sentence = refusal(capsys, tmp_path)
    assert "holds no evaluation.json" in sentence
    assert "give the model folders in it, e.g. nnUNetTrainer" in sentence
    for i, content in enumerate(([], {}, {"metric_per_case": []}, evaluation(lambda *_: "high"))):
        file = write(tmp_path / f"no_{i}.json", content)
        assert str(file.with_suffix("")) in refusal(capsys, *two, file)
    (tmp_path / "x.txt").touch()
    assert "no JSON file" in refusal(capsys, tmp_path / "x.txt")


# --- what is shown and written -------------------------------------------------------------------------------------


def test_the_terminal_shows_both_tables(two, capsys):
    assert main(["compare", *two]) == 0
    out = capsys.readouterr().out
    assert "8 cases of fold 0" in out
    assert "higher is better: DSC; lower is better: HD95_mm, ASSD_mm" in out
    value = mean(mean(drawn(seed)(case, "1", "DSC") for case in CASES) for seed in (0, 1))
    (line,) = [line for line in out.splitlines() if line.startswith(f"  {CONTROL}")]
    assert line.split()[1:3] == ["Anterior", f"{value:.3f}"]
    assert f"{SPCON} minus {CONTROL}, paired by case" in out
    assert sum("of 8 cases;" in line for line in out.splitlines()) == 3 * 3


def test_conventions_metrics_and_baseline(two, capsys):
    assert main(["compare", *two, "--convention", "voxel"]) == 0
    assert "lower is better: HD95_voxel, ASD_voxel" in capsys.readouterr().out
    assert main(["compare", *two, "--metrics", "ASSD_mm", "--baseline", SPCON]) == 0
    out = capsys.readouterr().out
    assert f"{CONTROL} minus {SPCON}" in out
    assert "DSC" not in out
    assert f"did you mean '{SPCON}'" in refusal(capsys, *two, "--baseline", "nnUNetTrainerSPCo")


@pytest.mark.parametrize(("out", "stem"), [("new/folder", "new/folder/comparison"), ("a.b.csv", "a.b")])
def test_the_three_files_hold_the_same_numbers(two, tmp_path, capsys, out, stem):
    for _ in range(2):  # the second time its own files are replaced
        assert main(["compare", *two, "--out", str(tmp_path / "out" / out)]) == 0
    paths = {suffix: tmp_path / "out" / f"{stem}{suffix}" for suffix in (".md", ".csv", ".json")}
    assert set(paths[".md"].parent.iterdir()) == set(paths.values())
    out = capsys.readouterr().out
    assert all(f"written: {path}" in out for path in paths.values())

    content = json.loads(paths[".json"].read_text())
    assert content["baseline"] == CONTROL
    assert content["cases"] == CASES
    assert [run["folds"] for run in content["methods"][1]["runs"]] == [["0"], ["0"]]
    with paths[".csv"].open(newline="") as file:
        lines = {(line["method"], line["class"], line["metric"]): line for line in csv.DictReader(file)}
    assert len(lines) == 2 * 3 * 3
    assert lines[CONTROL, "1", "DSC"]["difference"] == ""
    page = paths[".md"].read_text()
    for row in content["differences"]:
        line = lines[row["method"], row["label"], row["metric"]]
        assert float(line["difference"]) == row["difference"]
        assert float(line["p_holm"]) == row["p_holm"]
        assert line["effect"] == row["effect"]
        assert f"| {row['metric']} | {row['difference']:+.3f} | {row['low']:+.3f} to {row['high']:+.3f} |" in page


def test_foreign_files_are_not_replaced(two, tmp_path, capsys):
    own = Path(two[0]) / "fold_0" / "validation" / "evaluation.json"
    before = own.read_text()
    assert "was not written by this command" in refusal(capsys, *two, "--out", own)
    assert own.read_text() == before
    assert list(own.parent.iterdir()) == [own]


def test_nothing_is_written_half(two, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(capsys, *two, "--out", tmp_path / "file" / "page.md")
    blocked = tmp_path / "blocked"
    (blocked / "comparison.json.tmp").mkdir(parents=True)  # the third of the three cannot be written
    assert "cannot be written" in refusal(capsys, *two, "--out", blocked)
    assert [path.name for path in blocked.iterdir()] == ["comparison.json.tmp"]


def test_a_thousand_cases_take_seconds():
    cases = [f"case_{i:04d}" for i in range(1000)]
    values = np.random.default_rng(0).random((2, 1000))
    a, b = (
        method(name, lambda case, *_, v=v: float(v[int(case[-4:])]), cases=cases)
        for name, v in zip("ab", values, strict=True)
    )
    resampled.cache_clear()
    row = the_difference(compare([a, b], ["DSC"]), "b", "1", "DSC")
    assert row.low < row.difference < row.high
