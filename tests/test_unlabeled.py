import copy
import json
import os
import pickle
import shutil
import signal
import subprocess
import time
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_semicon.cli.main import main
from nnunet_semicon.data import unlabeled
from nnunet_semicon.data.images_un import scan_images_un
from nnunet_semicon.data.preprocess_unlabeled import _preprocess_case, preprocess_unlabeled
from nnunet_semicon.data.unlabeled import (
    OUTPUTS,
    plans_hash,
    require_preprocessed,
    unlabeled_folder,
    unlabeled_status,
)
from nnunet_semicon.errors import UserError
from tests.tiny import Tiny, case_name, command, make_case, read_json, write_case, write_image, write_json, write_raw

UNLABELED = [case_name(i) for i in range(6, 10)]


def arguments(tiny: Tiny, configuration: str = "2d") -> tuple:
    """The five arguments that the status functions share."""
    return (
        str(tiny.raw_dataset),
        str(tiny.preprocessed_dataset),
        PlansManager(str(tiny.plans_file)),
        configuration,
        read_json(tiny.preprocessed_dataset / "dataset.json"),
    )


def folder_of(tiny: Tiny, configuration: str = "2d") -> Path:
    return Path(unlabeled_folder(str(tiny.preprocessed_dataset), f"nnUNetPlans_{configuration}"))


def image_file(tiny: Tiny, case: str) -> Path:
    return tiny.raw_dataset / "imagesUn" / f"{case}_0000.nii.gz"


def new_image(path: Path, index: int) -> None:
    write_image(make_case(index)[0][0], path)


# --- scanning ----------------------------------------------------------------------------------------------------


@pytest.fixture
def raw(tmp_path) -> Path:
    """A raw dataset with two labeled and two unlabeled cases of two channels."""
    return write_raw(tmp_path, n_labeled=2, n_unlabeled=2, channels=2, shape=(2, 8, 8))


def scan(raw: Path) -> dict[str, list[str]]:
    return scan_images_un(str(raw), read_json(raw / "dataset.json"))


def test_scan_returns_the_channels_of_every_case(raw):
    (raw / "imagesUn" / ".DS_Store").write_bytes(b"x")
    expected = {
        case: [str(raw / "imagesUn" / f"{case}_{c:04d}.nii.gz") for c in range(2)]
        for case in ("patient002_frame01", "patient002_frame02")
    }
    assert scan(raw) == expected


def test_no_folder_and_an_empty_folder_are_no_unlabeled_cases(raw):
    shutil.rmtree(raw / "imagesUn")
    assert scan(raw) == {}
    (raw / "imagesUn").mkdir()
    assert scan(raw) == {}


def test_a_spacing_file_beside_a_tiff_belongs_to_its_case(raw):
    shutil.rmtree(raw / "imagesUn")
    (raw / "imagesUn").mkdir()
    for name in ("a_0000.tif", "a_0001.tif", "a.json"):
        (raw / "imagesUn" / name).write_bytes(b"x")
    dataset_json = read_json(raw / "dataset.json") | {"file_ending": ".tif"}
    assert list(scan_images_un(str(raw), dataset_json)) == ["a"]
    files = unlabeled.source_files([str(raw / "imagesUn" / f"a_000{c}.tif") for c in range(2)])
    assert [os.path.basename(f) for f in files] == ["a_0000.tif", "a_0001.tif", "a.json"]
    (raw / "imagesUn" / "b.json").write_bytes(b"x")
    with pytest.raises(UserError, match=r"b\.json"):
        scan_images_un(str(raw), dataset_json)


def remove(name):
    return lambda un: (un / name).unlink()


def add(name):
    return lambda un: shutil.copy(un / "patient002_frame01_0000.nii.gz", un / name)


def subfolder(un):
    (un / "more").mkdir()
    shutil.move(un / "patient002_frame01_0000.nii.gz", un / "more")


MISTAKES = {
    "channel missing": (remove("patient002_frame01_0001.nii.gz"), ["patient002_frame01", "0000", "lists 2"]),
    "channel too many": (add("patient002_frame01_0002.nii.gz"), ["patient002_frame01", "0002", "lists 2"]),
    "no suffix": (add("scan.nii.gz"), ["scan.nii.gz", "rename scan.nii.gz to scan_0000.nii.gz"]),
    "short suffix": (add("scan_00.nii.gz"), ["scan_00.nii.gz", "four digits"]),
    "other ending": (add("scan_0000.nii"), ["scan_0000.nii", "'.nii.gz'", "dataset.json"]),
    "subfolder": (subfolder, ["more", "subfolder", "move"]),
    "reserved name": (lambda un: [add(f"x_seg_000{c}.nii.gz")(un) for c in range(2)], ["x_seg", "rename"]),
    "also labeled": (
        lambda un: [add(f"patient001_frame02_000{c}.nii.gz")(un) for c in range(2)],
        ["patient001_frame02", "imagesTr"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_scan_refuses(raw, mistake):
    make, words = MISTAKES[mistake]
    make(raw / "imagesUn")
    with pytest.raises(UserError) as caught:
        scan(raw)
    for word in [*words, "imagesUn"]:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["imagesUns", "imagesUnlabeled", "imagesU", "imagesUN", "ImagesUn", "images_Un"])
def test_a_folder_with_nearly_the_right_name_is_refused(raw, name):
    (raw / "imagesUn").rename(raw / name)
    with pytest.raises(UserError, match=f"rename {name} to imagesUn"):
        scan(raw)


def test_the_stock_folders_are_no_lookalikes(raw):
    for name in ("imagesTs", "labelsTs", "imagesVal"):
        (raw / name).mkdir()
    assert len(scan(raw)) == 2


def test_an_explicit_listing_names_the_labeled_cases(raw):
    dataset_json = read_json(raw / "dataset.json") | {"dataset": {"patient002_frame02": {"images": [], "label": ""}}}
    with pytest.raises(UserError, match="patient002_frame02"):
        scan_images_un(str(raw), dataset_json)


@pytest.mark.parametrize("key", ["file_ending", "channel_names"])
def test_a_description_that_lacks_a_key_is_named(raw, key):
    dataset_json = read_json(raw / "dataset.json")
    dataset_json[f"{key}s"] = dataset_json.pop(key)
    with pytest.raises(UserError, match=rf"Dataset901_Tiny/dataset\.json has no '{key}', only .*{key}s"):
        scan_images_un(str(raw), dataset_json)


def test_older_descriptions_call_the_channels_modality(raw):
    dataset_json = read_json(raw / "dataset.json")
    dataset_json["modality"] = dataset_json.pop("channel_names")
    assert len(scan_images_un(str(raw), dataset_json)) == 2


# --- status ------------------------------------------------------------------------------------------------------


def test_after_preprocessing_everything_is_ready_without_hashing(tiny, monkeypatch):
    monkeypatch.setattr(unlabeled, "sha256", lambda path: pytest.fail("hashed an unchanged file"))
    for configuration in ("2d", "3d_fullres"):
        assert require_preprocessed(*arguments(tiny, configuration)) == UNLABELED
        assert set(unlabeled_status(*arguments(tiny, configuration)).values()) == {"ready"}


def test_states(tiny, tmp_path):
    mine = tiny.fresh(tmp_path)
    same, touched, changed, removed = UNLABELED
    os.utime(image_file(mine, touched), ns=(1, 1))
    new_image(image_file(mine, changed), 55)
    image_file(mine, removed).unlink()
    new_image(image_file(mine, "new"), 56)
    assert unlabeled_status(*arguments(mine)) == {
        same: "ready",
        touched: "ready",
        changed: "outdated",
        "new": "missing",
    }
    with pytest.raises(UserError) as caught:
        require_preprocessed(*arguments(mine))
    assert "1 not preprocessed (new)" in str(caught.value)
    assert f"1 preprocessed from other images ({changed})" in str(caught.value)
    assert str(caught.value).endswith("run: semicon preprocess -d 901 -c 2d")


@pytest.mark.parametrize("suffix", OUTPUTS)
def test_a_lost_file_makes_a_case_missing(tiny, tmp_path, suffix):
    mine = tiny.fresh(tmp_path)
    (folder_of(mine) / f"{UNLABELED[1]}{suffix}").unlink()
    with pytest.raises(UserError, match=rf"1 not preprocessed \({UNLABELED[1]}\).*semicon preprocess -d 901 -c 2d$"):
        require_preprocessed(*arguments(mine))


def test_not_preprocessed_at_all(tiny, tmp_path):
    mine = tiny.fresh(tmp_path)
    shutil.rmtree(folder_of(mine))
    with pytest.raises(UserError, match=r"4 not preprocessed .* run: semicon preprocess -d 901 -c 2d$"):
        require_preprocessed(*arguments(mine))


def test_without_images_nothing_is_required(tiny, tmp_path):
    mine = tiny.fresh(tmp_path)
    shutil.rmtree(mine.raw_dataset / "imagesUn")
    assert require_preprocessed(*arguments(mine)) == []


def test_without_the_raw_dataset_the_manifest_decides(tiny, tmp_path):
    mine = tiny.fresh(tmp_path)
    shutil.rmtree(mine.raw)
    assert require_preprocessed(*arguments(mine)) == UNLABELED
    change_plans(mine, lambda plans: plans["configurations"]["2d"].update(spacing=[2.0, 2.0]))
    with pytest.raises(UserError, match="4 preprocessed with other plans"):
        require_preprocessed(*arguments(mine))
    (folder_of(mine, "3d_fullres") / f"{UNLABELED[0]}.pkl").unlink()
    with pytest.raises(UserError, match=r"1 not preprocessed .* run: semicon preprocess -d 901 -c 3d_fullres$"):
        require_preprocessed(*arguments(mine, "3d_fullres"))
    shutil.rmtree(folder_of(mine))
    assert require_preprocessed(*arguments(mine)) == []


def change_plans(tiny: Tiny, change) -> None:
    plans = read_json(tiny.plans_file)
    change(plans)
    write_json(tiny.plans_file, plans)


def test_a_derived_configuration_shares_the_data(tiny, tmp_path):
    mine = tiny.fresh(tmp_path)
    derived = {"inherits_from": "2d", "batch_size": 9, "patch_size": [16, 16], "semicon": {"num_epochs": 2}}
    change_plans(mine, lambda plans: plans["configurations"].update({"2d_short": derived}))
    assert require_preprocessed(*arguments(mine, "2d_short")) == UNLABELED
    new_image(image_file(mine, "new"), 56)
    with pytest.raises(UserError, match=r"run: semicon preprocess -d 901 -c 2d_short$"):
        require_preprocessed(*arguments(mine, "2d_short"))


DATA_CHANGES = {
    "spacing": [1.0, 2.0],
    "normalization_schemes": ["CTNormalization"],
    "use_mask_for_norm": [True],
    "preprocessor_name": "OtherPreprocessor",
    "resampling_fn_data": "resample_torch_fornnunet",
    "resampling_fn_data_kwargs": {"order": 1},
    "resampling_fn_seg": "resample_torch_fornnunet",
    "resampling_fn_seg_kwargs": {"order": 0},
    "transpose_forward": [1, 0, 2],
    "image_reader_writer": "NibabelIO",
    "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0}},
}


@pytest.mark.parametrize("key", DATA_CHANGES)
def test_the_hash_covers_what_the_arrays_depend_on(tiny, key):
    plans = read_json(tiny.plans_file)
    changed = copy.deepcopy(plans)
    target = changed if key in plans else changed["configurations"]["2d"]
    assert key in target
    target[key] = DATA_CHANGES[key]
    assert plans_hash(PlansManager(changed), "2d") != plans_hash(PlansManager(plans), "2d")
    assert plans_hash(PlansManager(copy.deepcopy(plans)), "2d") == plans_hash(PlansManager(plans), "2d")


# --- the command -------------------------------------------------------------------------------------------------


def load(folder: Path, case: str):
    """Image, segmentation and properties of a preprocessed case."""
    with open(folder / f"{case}.pkl", "rb") as file:
        properties = pickle.load(file)
    return *(blosc2.open(str(folder / f"{case}{end}.b2nd"), mode="r")[:] for end in ("", "_seg")), properties


@pytest.mark.usefixtures("forks")
def test_the_command_redoes_only_what_changed_and_gives_nnunets_arrays(tiny, tmp_path, monkeypatch, capsys):
    mine = tiny.fresh(tmp_path)
    same, touched, changed, removed = UNLABELED
    os.utime(image_file(mine, touched), ns=(1, 1))
    new_image(image_file(mine, changed), 55)
    image_file(mine, removed).unlink()
    shutil.copy(mine.raw_dataset / "imagesTr" / f"{case_name(1)}_0000.nii.gz", image_file(mine, "copy"))
    folder = folder_of(mine)
    (folder / ".partial").mkdir()  # left behind by a kill
    (folder / ".partial" / "copy.b2nd").write_bytes(b"half")
    before = {case: (folder / f"{case}.b2nd").stat().st_ino for case in (same, touched, changed)}

    done = mine.run("semicon", "preprocess", "-d", "901", "-c", "2d", "-np", 2)
    assert f"4 of 4 unlabeled cases are preprocessed in {folder} (2 were up to date)" in done.stdout
    assert "nnUNetv2_train 901 2d 0 -tr nnUNetTrainer" in done.stdout
    assert "2/2" in done.stderr  # the progress bar
    assert require_preprocessed(*arguments(mine)) == sorted(["copy", same, touched, changed])
    redone = {case for case, inode in before.items() if (folder / f"{case}.b2nd").stat().st_ino != inode}
    assert redone == {changed}
    expected = {f"{case}{suffix}" for case in ("copy", same, touched, changed) for suffix in OUTPUTS}
    assert set(os.listdir(folder)) == expected | {"manifest.json"}  # nothing partial, nothing of the removed case

    # the same scan with and without its label: the same image, the same outside, no class locations
    image, seg, properties = load(folder, "copy")
    labeled_image, labeled_seg, labeled_properties = load(mine.preprocessed_dataset / "nnUNetPlans_2d", case_name(1))
    np.testing.assert_array_equal(image, labeled_image)
    np.testing.assert_array_equal(seg < 0, labeled_seg < 0)
    assert (seg < 0).any()
    assert seg.max() == 0
    assert properties["bbox_used_for_cropping"] == labeled_properties["bbox_used_for_cropping"]
    assert "class_locations" not in properties

    mine.use(monkeypatch)
    assert main(["preprocess", "-d", "Dataset901_Tiny", "-c", "2d"]) == 0
    assert "(4 were up to date)" in capsys.readouterr().out
    assert main(["preprocess", "-d", "901", "-c", "2d", "-np", "1", "--force"]) == 0
    assert "(0 were up to date)" in capsys.readouterr().out
    np.testing.assert_array_equal(load(folder, "copy")[0], image)


@pytest.mark.usefixtures("forks")
def test_other_plans_redo_everything(tiny, tmp_path):
    mine = tiny.fresh(tmp_path)
    change_plans(mine, lambda plans: plans["configurations"]["2d"].update(spacing=[2.0, 2.0]))
    with pytest.raises(UserError, match=r"4 preprocessed with other plans .* run: semicon preprocess -d 901 -c 2d$"):
        require_preprocessed(*arguments(mine))
    old_shape = load(folder_of(mine), UNLABELED[0])[0].shape
    result = preprocess_unlabeled(*arguments(mine), n_processes=1)
    assert (result.n_cases, result.n_up_to_date, result.failures) == (4, 0, {})
    assert load(folder_of(mine), UNLABELED[0])[0].shape[-1] == old_shape[-1] // 2
    assert require_preprocessed(*arguments(mine)) == UNLABELED


@pytest.mark.usefixtures("forks")
def test_values_that_are_not_finite_are_named(tiny, tmp_path):
    mine = tiny.fresh(tmp_path)
    image = make_case(7)[0][0]
    image[3, 20, 20] = np.nan
    write_image(image, image_file(mine, "nan"))
    change_plans(mine, lambda plans: plans.update(image_reader_writer="NibabelIO"))  # SimpleITK reads NaN as 0
    result = preprocess_unlabeled(*arguments(mine), n_processes=1)
    assert list(result.failures) == ["nan"]
    assert "nan_0000.nii.gz" in result.failures["nan"]
    assert "not finite" in result.failures["nan"]
    assert set(os.listdir(folder_of(mine))) == {f"{c}{suffix}" for c in UNLABELED for suffix in OUTPUTS} | {
        "manifest.json"
    }


@pytest.mark.usefixtures("forks")
def test_bad_files_are_named_and_the_others_finish(tiny, tmp_path, monkeypatch, capfd):
    mine = tiny.fresh(tmp_path)
    good, truncated, garbage, four_d = UNLABELED
    # the header is whole: SimpleITK alone would read the rest as zeros
    image_file(mine, truncated).write_bytes(image_file(mine, truncated).read_bytes()[:-500])
    image_file(mine, garbage).write_bytes(b"not an image" * 100)
    frames = [SimpleITK.GetImageFromArray(make_case(7)[0][0]) for _ in range(3)]
    SimpleITK.WriteImage(SimpleITK.JoinSeries(frames), str(image_file(mine, four_d)))
    broken = image_file(mine, "broken")
    broken.symlink_to(tmp_path / "nowhere")
    new_image(image_file(mine, good), 55)

    mine.use(monkeypatch)
    assert main(["preprocess", "-d", "901", "-c", "2d", "-np", "1"]) == 1
    out, err = capfd.readouterr()
    assert "Traceback" not in err + out
    sentences = [line for line in err.splitlines() if line.startswith("semicon preprocess: ")]
    words = {truncated: "cannot be read", garbage: "cannot be read", four_d: "3 channels", "broken": "cannot be read"}
    for case, word in words.items():
        assert any(str(image_file(mine, case)) in line and word in line for line in sentences), (case, err)
    assert "1 of 5 unlabeled cases are preprocessed" in out
    states = unlabeled_status(*arguments(mine))
    assert states == dict.fromkeys(sorted(words), "missing") | {good: "ready"}


@pytest.mark.usefixtures("forks")
def test_channels_that_do_not_fit_are_named(tiny, tmp_path):
    mine = tiny.fresh(tmp_path)
    shutil.rmtree(mine.raw_dataset / "imagesUn")
    write_case(mine.raw_dataset / "imagesUn", "good", make_case(6, channels=2)[0])
    files = write_case(mine.raw_dataset / "imagesUn", "bad", make_case(6, channels=2)[0])
    write_image(make_case(6)[0][0, :5], files[1])
    for path in list((mine.raw_dataset / "imagesTr").iterdir()):
        shutil.copyfile(path, path.with_name(path.name.replace("_0000", "_0001")))

    def two_channels(plans):
        plans["configurations"]["2d"]["normalization_schemes"] *= 2
        plans["configurations"]["2d"]["use_mask_for_norm"] *= 2
        properties = plans["foreground_intensity_properties_per_channel"]
        properties["1"] = properties["0"]

    change_plans(mine, two_channels)
    *rest, dataset_json = arguments(mine)
    dataset_json["channel_names"] = {"0": "a", "1": "b"}
    result = preprocess_unlabeled(*rest, dataset_json, n_processes=1)
    assert list(result.failures) == ["bad"]
    assert "bad_0000.nii.gz" in result.failures["bad"]
    assert "(12, 40, 40)" in result.failures["bad"]
    assert "(5, 40, 40)" in result.failures["bad"]
    assert load(folder_of(mine), "good")[0].shape[0] == 2


def failing(tiny: Tiny, monkeypatch, capsys, *words: str) -> str:
    """Run the command in this process; returns its one sentence."""
    tiny.use(monkeypatch)
    assert main(["preprocess", *words]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err


def test_mistakes_on_the_command_line(tiny, monkeypatch, capsys):
    say = lambda *words: failing(tiny, monkeypatch, capsys, *words)  # noqa: E731
    sentence = say("-d", "901", "-c", "2", "3d_fullres")
    assert "'2'" in sentence
    assert "did you mean '2d'?" in sentence
    assert "3d_fullres" in sentence
    sentence = say("-d", "901", "-c", "2d", "-p", "nnUNetResEncPlans")
    assert "nnUNetResEncPlans.json does not exist, but other plans do; name one of them with -p: nnUNet" in sentence
    assert "777" in say("-d", "777", "-c", "2d")
    assert "tiny" in say("-d", "tiny", "-c", "2d")
    assert "did you mean 'Dataset901_Tiny'?" in say("-d", "Dataset901_Tyni", "-c", "2d")
    assert "-np 0" in say("-d", "901", "-c", "2d", "-np", "0")


def test_what_has_to_come_first(tiny, tmp_path, monkeypatch, capsys):
    mine = tiny.fresh(tmp_path)
    say = lambda: failing(mine, monkeypatch, capsys, "-d", "901", "-c", "2d")  # noqa: E731
    shutil.rmtree(mine.preprocessed_dataset / "nnUNetPlans_2d")
    assert "run first: nnUNetv2_preprocess -d 901 -plans_name nnUNetPlans -c 2d" in say()
    (mine.raw_dataset / "imagesUn").rename(mine.raw_dataset / "imagesUnlabeled")
    assert "rename imagesUnlabeled to imagesUn" in say()
    shutil.rmtree(mine.raw_dataset / "imagesUnlabeled")
    sentence = say()
    assert str(mine.raw_dataset / "imagesUn") in sentence
    assert "optional" in sentence
    mine.plans_file.rename(mine.plans_file.with_name("nnUNetResEncUNetMPlans.json"))
    sentence = say()
    assert "name one of them with -p: nnUNetResEncUNetMPlans" in sentence
    assert "plan_and_preprocess" not in sentence, "nothing has to be planned again"
    (mine.preprocessed_dataset / "nnUNetResEncUNetMPlans.json").unlink()
    assert "run first: nnUNetv2_plan_and_preprocess -d 901 -c 2d" in say()


def test_damaged_files_of_the_preprocessed_folder(tiny, tmp_path, monkeypatch, capsys):
    mine = tiny.fresh(tmp_path)
    say = lambda: failing(mine, monkeypatch, capsys, "-d", "901", "-c", "2d")  # noqa: E731
    description = mine.preprocessed_dataset / "dataset.json"
    content = description.read_text()
    description.write_text(content[:40])
    assert f"{description} is not valid JSON" in say()
    description.write_text("[]")
    assert f"{description} holds no JSON object" in say()
    description.unlink()
    assert f"{description} cannot be read (No such file or directory)" in say()
    description.write_text(content)
    mine.plans_file.write_text(mine.plans_file.read_text()[:500])
    assert f"{mine.plans_file} cannot be read" in say()
    mine.plans_file.write_text("{}")
    assert f"{mine.plans_file} is not a plans file" in say()


def test_an_empty_folder_of_images_removes_nothing(tiny, tmp_path, monkeypatch, capsys):
    """It may be a disk that is not mounted."""
    mine = tiny.fresh(tmp_path)
    for case in UNLABELED:
        image_file(mine, case).unlink()
    (mine.raw_dataset / "imagesUn" / ".DS_Store").touch()
    before = sorted(folder_of(mine).iterdir())
    sentence = failing(mine, monkeypatch, capsys, "-d", "901", "-c", "2d")
    assert f"{mine.raw_dataset / 'imagesUn'} is empty" in sentence
    assert "remove the folder if there are none" in sentence
    assert sorted(folder_of(mine).iterdir()) == before


def a_file_is_there(folder: Path):
    shutil.rmtree(folder)
    folder.write_bytes(b"")
    return folder


def no_manifest(folder: Path):
    blocked = folder / "manifest.json.tmp"
    blocked.mkdir()
    return blocked


def no_case(folder: Path):
    blocked = folder / f"{UNLABELED[0]}.b2nd"
    blocked.unlink()
    blocked.mkdir()
    return blocked


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("sabotage", [a_file_is_there, no_manifest, no_case])
def test_what_cannot_be_written_is_one_sentence(tiny, tmp_path, sabotage):
    mine = tiny.fresh(tmp_path)
    folder = folder_of(mine)
    new_image(image_file(mine, UNLABELED[0]), 55)
    sabotage(folder)
    with pytest.raises(UserError, match=rf"{folder}.* cannot be written \(.*the same command goes on$"):
        preprocess_unlabeled(*arguments(mine), n_processes=1)
    assert not (folder / ".partial").exists()


@pytest.mark.parametrize(("free", "error"), [(0, OSError), (2**40, UserError)])
def test_a_full_disk_is_not_blamed_on_an_image(tiny, tmp_path, monkeypatch, free, error):
    def fails(*args, **kwargs):
        raise RuntimeError("Error while creating the NDArray")  # as blosc2, which does not say why

    monkeypatch.setattr(nnUNetDatasetBlosc2, "save_case", fails)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    *_, manager, configuration, dataset_json = arguments(tiny)
    case = str(tmp_path / UNLABELED[0]), [str(image_file(tiny, UNLABELED[0]))]
    with pytest.raises(error) as caught:
        _preprocess_case(*case, manager, configuration, dataset_json)
    assert ("No space left" in str(caught.value)) == (error is OSError)


def children(pid: int) -> list[int]:
    """Worker processes of a running command (not the resource tracker of multiprocessing)."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def wait_for(condition, seconds: float = 120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_kill_leaves_whole_cases_and_a_dead_worker_is_noticed(tiny, tmp_path):
    mine = tiny.fresh(tmp_path)
    for index in range(60):
        shutil.copy(image_file(mine, UNLABELED[index % 4]), image_file(mine, f"more{index:02d}"))
    folder = folder_of(mine)
    shutil.rmtree(folder)
    words = [command("semicon"), "preprocess", "-d", "901", "-c", "2d", "-np", "2"]

    def start():
        return subprocess.Popen(words, env=mine.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finished() -> set[str]:
        manifest = folder / "manifest.json"
        return set(json.loads(manifest.read_text())["cases"]) if manifest.is_file() else set()

    run = start()
    wait_for(lambda: len(finished()) >= 3)
    workers = children(run.pid)
    assert workers
    run.send_signal(signal.SIGKILL)
    run.communicate()
    first = finished()
    assert 3 <= len(first) < 64
    states = unlabeled_status(*arguments(mine))
    assert {case for case, state in states.items() if state == "ready"} == first
    for case in first:
        load(folder, case)
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), 20)

    run = start()
    wait_for(lambda: len(finished()) >= len(first) + 3)
    os.kill(children(run.pid)[0], signal.SIGKILL)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 1, out + err
    assert "a worker process died" in err
    assert "-np" in err
    assert "Traceback" not in err
    second = finished()
    assert first < second < set(states)
    assert not (folder / ".partial").exists()

    out, err = start().communicate(timeout=300)
    assert f"64 of 64 unlabeled cases are preprocessed in {folder} ({len(second)} were up to date)" in out, err
    assert len(require_preprocessed(*arguments(mine))) == 64
