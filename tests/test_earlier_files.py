"""Files of earlier versions go on working: checkpoints, plans, sweeps and results in ``tests/earlier``."""

import json
import lzma
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunet_semicon.cli.main import main
from nnunet_semicon.configuration.wording import assignments
from tests.earlier.make import rates_of
from tests.harness import configure, make_trainer, run_until, scalars_of, started, step
from tests.tiny import DATASET, SPACING_ZYX, Tiny, make_case, read_json

EARLIER = Path(__file__).parent / "earlier"
VERSIONS = [folder.name for folder in sorted(EARLIER.glob("v*"))]
CONTROL = "nnUNetTrainerSupervisedControl"
# trainer -> networks that can be exported; a pre-training segments nothing
NETWORKS = {
    CONTROL: ["student"],
    "nnUNetTrainerMeanTeacher": ["student", "teacher"],
    "nnUNetTrainerSPCon": ["student", "teacher"],
    "nnUNetTrainerMCSC": ["student", "second"],
}


@dataclass(frozen=True)
class Stored:
    """A stored checkpoint: ``version`` is its folder, ``path`` its place in the dataset's results folder."""

    version: str
    path: Path

    @property
    def trainer(self) -> str:
        """Name of the trainer."""
        return self.path.parts[0].split("__")[0]

    @property
    def configuration(self) -> str:
        """Name of the configuration."""
        return self.path.parts[0].split("__")[2]

    @property
    def parent(self) -> str:
        """The configuration that others inherit from."""
        return "3d_fullres_tiny" if self.trainer == "nnUNetTrainerSPCon" else "2d_tiny"

    def __str__(self) -> str:
        return f"{self.version}-{self.configuration}"


def stored_checkpoints(name: str) -> list[Stored]:
    files = [(v, file.relative_to(EARLIER / v / "results")) for v in VERSIONS for file in (EARLIER / v).rglob(name)]
    return [Stored(version, path.with_suffix("")) for version, path in sorted(files)]


EVERY = pytest.mark.parametrize("stored", stored_checkpoints("*.pth.xz"), ids=str)
INTERRUPTED = pytest.mark.parametrize("stored", stored_checkpoints("checkpoint_latest.pth.xz"), ids=str)
EXPORTS = [(s, network) for s in stored_checkpoints("*.pth.xz") for network in NETWORKS.get(s.trainer, [])]
OF_EACH_VERSION = pytest.mark.parametrize("version", VERSIONS)
Place = Callable[[str], Tiny]


@pytest.fixture(scope="module")
def unpacked(tiny, tmp_path_factory) -> Place:
    """Returns the tiny dataset with plans and results of a version, unpacked once. Read-only."""
    places: dict[str, Tiny] = {}

    def unpack(version: str) -> Tiny:
        if version not in places:
            places[version] = _unpack(EARLIER / version, tiny.fresh(tmp_path_factory.mktemp(version)))
        return places[version]

    return unpack


def _unpack(folder: Path, place: Tiny) -> Tiny:
    shutil.copytree(folder / "preprocessed", place.preprocessed_dataset, dirs_exist_ok=True)
    shutil.copy(folder / "sweep.yaml", place.root)
    results = place.results / DATASET
    shutil.copytree(folder / "results", results)
    for packed in results.rglob("*.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    for model in results.iterdir():
        shutil.copy(place.plans_file, model / "plans.json")
        for name in ("dataset.json", "dataset_fingerprint.json"):
            shutil.copy(place.preprocessed_dataset / name, model)
        for fold in model.glob("fold_*"):
            (fold / "progress.png").touch()  # nnU-Net's figure, too large to be stored
    return place


@pytest.fixture
def use(unpacked, monkeypatch, tmp_path) -> Iterator[Place]:
    """Returns a version's dataset in this process's environment, with results and plans that the test may change."""
    plans: dict[Path, bytes] = {}

    def of_version(version: str) -> Tiny:
        place = unpacked(version)
        place.use(monkeypatch)
        plans[place.plans_file] = place.plans_file.read_bytes()
        shutil.copytree(place.results, tmp_path / "results")
        monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
        return place

    yield of_version
    for file, content in plans.items():
        file.write_bytes(content)


# configuration -> what a refused resume says to set: v0.1.0 had other rows in a step
OTHER_ROWS = {"contrast_s0": {"unlabeled_per_step": 1}}


def set_rows_back(place: Tiny, stored: Stored) -> None:
    """Give a configuration the rows that its version had."""
    if stored.configuration in OTHER_ROWS:
        set_also(place, stored, OTHER_ROWS[stored.configuration])


def set_also(place: Tiny, stored: Stored, values: Mapping[str, object], without: Collection[str] = ()) -> None:
    block = read_json(place.plans_file)["configurations"][stored.configuration]["semicon"]
    kept = {key: value for key, value in block.items() if key not in without}
    configure(place, stored.configuration, stored.parent, **{**kept, **values})


def results_of(tmp_path: Path) -> Path:
    return tmp_path / "results" / DATASET


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=False)


def assert_same(then, now, where: str) -> None:
    """Assert that everything that was stored is there, bit by bit."""
    if isinstance(then, dict):
        for key, value in then.items():
            assert_same(value, now[key], f"{where}.{key}")
    elif isinstance(then, list | tuple):
        assert len(then) == len(now), where
        for i, (a, b) in enumerate(zip(then, now, strict=True)):
            assert_same(a, b, f"{where}.{i}")
    elif isinstance(then, torch.Tensor):
        assert torch.equal(then, now), where
    else:
        assert then == now, where


# --- checkpoints -------------------------------------------------------------------------------------------------


@OF_EACH_VERSION
def test_every_mechanism_has_a_checkpoint(version):
    there = [stored for stored in stored_checkpoints("checkpoint_latest.pth.xz") if stored.version == version]
    kept = {}
    for stored in there:
        packed = EARLIER / version / "results" / f"{stored.path}.xz"
        with lzma.open(packed) as file:
            kept[stored.trainer.removeprefix("nnUNetTrainer")] = torch.load(file, weights_only=False)["semicon"]
    assert any(key.startswith("teacher.") for key in kept["MeanTeacher"]["method"])
    assert any(key.startswith("second.") for key in kept["MCSC"]["method"])
    assert kept["SPCon"]["settings"]["queue_size"] > 0
    assert any("queues" in key for key in kept["SPCon"]["method"])
    assert all(kept[name]["optimizers"] for name in ("MCSC", "SPCon"))


@EVERY
def test_the_stock_predictor_predicts_with_it(use, tmp_path, stored):
    use(stored.version)
    probabilities = predicted(results_of(tmp_path) / stored.path)
    assert probabilities.shape == (3, 12, 40, 40)
    assert np.isfinite(probabilities).all()
    assert np.allclose(probabilities.sum(0), 1, atol=1e-3)


def predicted(checkpoint: Path) -> np.ndarray:
    """Softmax (classes, Z, Y, X) of one scan, in its own space, by the stock predictor."""
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(checkpoint.parents[1]), (0,), checkpoint.name)
    image, _ = make_case(4)
    _, probabilities = predictor.predict_single_npy_array(
        image, {"spacing": list(SPACING_ZYX)}, None, None, save_or_return_probabilities=True
    )
    return probabilities


@pytest.mark.parametrize(("stored", "network"), EXPORTS, ids=lambda value: str(value))
def test_its_networks_are_exported(use, tmp_path, stored, network):
    use(stored.version)
    words = ["-d", "901", "-c", stored.configuration, "-tr", stored.trainer, "--checkpoint", stored.path.name]
    assert main(["export", *words, "--network", network, "-o", str(tmp_path / "out")]) == 0
    (exported,) = (tmp_path / "out").rglob("checkpoint_final.pth")
    assert np.isfinite(predicted(exported)).all()
    weights, student = load(exported)["network_weights"], load(results_of(tmp_path) / stored.path)["network_weights"]
    same = weights.keys() == student.keys() and all(torch.equal(weights[key], student[key]) for key in weights)
    assert same == (network == "student")


@INTERRUPTED
def test_it_resumes_with_everything_that_it_holds(use, monkeypatch, tmp_path, stored):
    set_rows_back(use(stored.version), stored)
    path = results_of(tmp_path) / stored.path
    then = load(path)
    curves, settings = ((path.parent / name).read_text() for name in ("scalars.jsonl", "semicon_config.json"))

    trainer = make_trainer(stored.trainer, stored.configuration, continue_training=True)
    trainer.load_checkpoint(str(path))
    assert trainer.current_epoch == then["current_epoch"] == 1
    trainer.save_checkpoint(str(tmp_path / "again.pth"))
    again = load(tmp_path / "again.pth")
    for key in ("network_weights", "optimizer_state", "logging", "_best_ema", "trainer_name"):
        assert_same(then[key], again[key], key)
    for key in ("method", "optimizers", "settings"):
        assert_same(then["semicon"][key], again["semicon"][key], key)

    run_until(trainer, None, monkeypatch)
    final = load(path.with_name("checkpoint_final.pth"))
    (rates,) = (
        rates for name, rates in expected(stored.version)["learning_rates"].items() if stored.configuration in name
    )
    assert rates_of(final) == [pytest.approx(of_optimizer) for of_optimizer in rates]
    assert not torch.equal(*(torch.cat([v.flatten() for v in c["network_weights"].values()]) for c in (then, final)))
    rows = scalars_of(trainer)
    assert rows[0] == json.loads(curves)
    assert rows[1]["epoch"] == 1
    assert all(np.isfinite(value) for value in rows[1].values())
    assert_settings_kept(json.loads(settings), read_json(path.with_name("semicon_config.json")))


@EVERY
def test_another_training_starts_from_it(use, tmp_path, stored):
    use(stored.version)
    path = results_of(tmp_path) / stored.path
    trainer = make_trainer(CONTROL, stored.parent)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(path))
    now = trainer.network.state_dict()
    assert all(torch.equal(v, now[k]) for k, v in load(path)["network_weights"].items() if ".seg_layers." not in k)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    assert np.isfinite(step(trainer)["loss"])


# --- keys that came later, and defaults that changed ------------------------------------------------------------


def with_settings(path: Path, change: Callable[[dict], object]) -> None:
    checkpoint = load(path)
    change(checkpoint["semicon"]["settings"])
    torch.save(checkpoint, path)


@INTERRUPTED
def test_a_key_that_it_lacks_does_not_stop_a_resume(use, tmp_path, stored):
    set_rows_back(use(stored.version), stored)
    path = results_of(tmp_path) / stored.path
    with_settings(path, lambda settings: settings.pop("cutout"))
    trainer = make_trainer(stored.trainer, stored.configuration, continue_training=True)
    trainer.load_checkpoint(str(path))
    trainer.on_train_start()
    now = read_json(path.with_name("semicon_config.json"))["settings"]
    assert now["cutout"]["value"] is False, "what trainings did before this key existed"


@pytest.mark.parametrize(
    ("change", "now"),
    [
        pytest.param(lambda settings: settings.pop("cutout"), True, id="a key that it lacks"),
        pytest.param(lambda settings: settings.update(cutout=True), False, id="a default that changed"),
    ],
)
@OF_EACH_VERSION
def test_another_value_stops_a_resume_and_the_sentence_restores_the_old_one(use, tmp_path, version, change, now):
    place = use(version)
    latest = stored_checkpoints("checkpoint_latest.pth.xz")
    stored = next(s for s in latest if s.version == version and s.trainer == "nnUNetTrainerMeanTeacher")
    path = results_of(tmp_path) / stored.path
    with_settings(path, change)
    if now:
        set_also(place, stored, {"cutout": now})
    trainer = make_trainer(stored.trainer, stored.configuration, continue_training=True)
    with pytest.raises(SystemExit, match=f"--set cutout={'false' if now else 'true'}"):
        trainer.load_checkpoint(str(path))


V010 = [s for s in stored_checkpoints("checkpoint_latest.pth.xz") if s.version == "v0.1.0"]
# with labeled_per_step as it was set, and as if nothing had been set: then the rule of its time gave the same number
REFUSED = [
    *((s, ()) for s in V010 if s.configuration in OTHER_ROWS),
    *((s, ("labeled_per_step",)) for s in V010 if s.trainer != "nnUNetTrainerSPConPretrain"),
]


@pytest.mark.parametrize(("stored", "without"), REFUSED, ids=str)
def test_other_rows_stop_a_resume_and_the_sentence_restores_them(use, monkeypatch, tmp_path, stored, without):
    place = use(stored.version)
    set_also(place, stored, {}, without)
    path = str(results_of(tmp_path) / stored.path)
    then = load(Path(path))["semicon"]["settings"]
    trainer = make_trainer(stored.trainer, stored.configuration, continue_training=True)
    with pytest.raises(SystemExit) as refused:
        trainer.load_checkpoint(path)
    words = re.search(r"--set ([^`]+)`", str(refused.value))[1].split()
    assert {word.split("=")[0] for word in words} <= {"labeled_per_step", "unlabeled_per_step"}
    options = ["-d", "901", "-c", stored.parent, "--name", stored.configuration, "--force", "--set"]
    block = read_json(place.plans_file)["configurations"][stored.configuration]["semicon"]
    kept = assignments({key: value for key, value in block.items() if f"{key}=" not in " ".join(words)}).split()
    assert main(["configure", *options, *kept, *words]) == 0

    trainer = make_trainer(stored.trainer, stored.configuration, continue_training=True)
    trainer.load_checkpoint(path)
    assert trainer.rows.labeled == then["labeled_per_step"]
    assert trainer.rows.student_rows == then["student_rows"]
    run_until(trainer, None, monkeypatch)
    assert scalars_of(trainer)[-1]["epoch"] == 1


# --- plans, sweep, results ---------------------------------------------------------------------------------------


@EVERY
def test_its_plans_block_says_what_it_said(use, tmp_path, stored):
    set_rows_back(use(stored.version), stored)
    file = results_of(tmp_path) / stored.path.parent / "semicon_config.json"
    then = read_json(file)
    file.unlink()
    started(stored.trainer, stored.configuration)
    assert_settings_kept(then, read_json(file))


def assert_settings_kept(then: dict, now: dict) -> None:
    """Assert that every hyper-parameter that was there has the value that it had."""
    was, has = ({k: v["value"] for k, v in content["settings"].items()} for content in (then, now))
    assert {key: has.get(key) for key in was} == was


@OF_EACH_VERSION
def test_a_sweep_knows_its_trainings_and_what_became_of_them(use, capsys, version):
    place = use(version)
    assert main(["sweep", str(place.root / "sweep.yaml"), "--dry-run"]) == 0
    lines = re.findall(r"^# \d+ (\S+), ([a-z ]+)(?:, after [^:]+)?: nnUNetv2_train", capsys.readouterr().out, re.M)
    assert dict(lines) == expected(version)["standing"]


@OF_EACH_VERSION
def test_measured_results_are_compared_and_measured_again(use, tmp_path, capsys, version):
    use(version)
    files = sorted(results_of(tmp_path).rglob("evaluation.json"))
    runs = [str(file.parents[2]) for file in files]
    assert len(runs) == 2
    assert main(["compare", *runs]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in (CONTROL, "nnUNetTrainerMeanTeacher"))
    for run, file in zip(runs, files, strict=True):
        then = read_json(file)
        assert main(["evaluate", run, "-np", "1"]) == 0
        assert_measured_alike(then["metric_per_case"], read_json(file)["metric_per_case"])


def assert_measured_alike(then: list[dict], now: list[dict]) -> None:
    assert [entry["case"] for entry in then] == [entry["case"] for entry in now]
    for before, after in zip(then, now, strict=True):
        for label, metrics in before["metrics"].items():
            again = {name: after["metrics"][label][name] for name in metrics}
            assert again == pytest.approx(metrics, nan_ok=True), (before["case"], label)


# --- helpers -----------------------------------------------------------------------------------------------------


def expected(version: str) -> dict:
    """What `tests.earlier.make` noted beside the files."""
    return read_json(EARLIER / version / "expected.json")
