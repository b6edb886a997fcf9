"""nnU-Net's own search finds the trainers: editable, from a wheel, in workers, beside the user's own."""

import os
import pickle
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from nnunet_semicon import autoload, trainers

ROOT = Path(__file__).resolve().parents[1]
USER_TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerOfTheUser(nnUNetTrainer):
    pass
"""
# prints one line per name: module, whether it is the class of the installed package, and the file of that package
FIND = """
import sys, torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
found = [recursive_find_trainer_class_by_name(name) for name in sys.argv[1:]]
import nnunet_semicon.trainers as trainers
for cls in found:
    print("FOUND", cls.__module__, cls is getattr(trainers, cls.__name__, None), trainers.__file__)
"""
PRINT_VARIABLE = "import os, torch; print(os.environ.get('nnUNet_extTrainer'))"


def clean_environment(**extra):
    """The environment of the tests without anything that influences discovery."""
    dropped = (autoload.VARIABLE, autoload.SWITCH, "TORCH_DEVICE_BACKEND_AUTOLOAD", "PYTHONPATH")
    return {key: value for key, value in os.environ.items() if key not in dropped} | extra


def python(code, *words, cwd, executable=sys.executable, **extra):
    """Run code in a fresh interpreter outside the checkout and return what it prints."""
    done = subprocess.run(
        [executable, "-c", code, *words], cwd=cwd, env=clean_environment(**extra), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def found(output):
    return [line.split(" ", 3)[1:] for line in output.splitlines() if line.startswith("FOUND")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder of the package that a fresh interpreter outside the checkout imports (with or without -e)."""
    code = "import nnunet_semicon; print(nnunet_semicon.__path__[0])"
    return Path(python(code, cwd=tmp_path_factory.mktemp("outside")).strip())


@pytest.fixture
def user_folder(tmp_path):
    """A folder with a trainer of the user, as nnUNet_extTrainer may name."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "my_trainers.py").write_text(USER_TRAINER)
    return folder


def test_register_keeps_the_users_folders_in_their_order_and_adds_ours_once(monkeypatch):
    monkeypatch.delenv(autoload.SWITCH, raising=False)
    monkeypatch.setenv(autoload.VARIABLE, os.pathsep.join(["/b", "/a"]))
    autoload.register()
    autoload.register()
    assert os.environ[autoload.VARIABLE].split(os.pathsep) == ["/b", "/a", autoload.trainer_folder()]


@pytest.mark.parametrize("value", [None, "", os.pathsep])
def test_register_without_folders_of_the_user(monkeypatch, value):
    monkeypatch.delenv(autoload.SWITCH, raising=False)
    monkeypatch.delenv(autoload.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(autoload.VARIABLE, value)
    autoload.register()
    assert os.environ[autoload.VARIABLE] == autoload.trainer_folder()


def test_register_leaves_our_folder_where_the_user_put_it(monkeypatch):
    monkeypatch.delenv(autoload.SWITCH, raising=False)
    folders = os.pathsep.join([autoload.trainer_folder(), "/a"])
    monkeypatch.setenv(autoload.VARIABLE, folders)
    autoload.register()
    assert os.environ[autoload.VARIABLE] == folders


@pytest.mark.parametrize("value", ["0", "false", "OFF", " no "])
def test_the_switch_turns_it_off(monkeypatch, value):
    monkeypatch.setenv(autoload.SWITCH, value)
    monkeypatch.setenv(autoload.VARIABLE, "/a")
    autoload.register()
    assert os.environ[autoload.VARIABLE] == "/a"


def test_the_folder_holds_one_module():
    assert [path.name for path in Path(autoload.trainer_folder()).glob("*.py")] == ["semicon_trainers.py"]


def test_importing_torch_is_enough(tmp_path, installed):
    output = python(PRINT_VARIABLE, cwd=tmp_path, nnUNet_extTrainer="/a")
    assert output.strip().split(os.pathsep) == ["/a", str(installed / "nnunet_ext")]


def test_importing_torch_changes_nothing_when_switched_off(tmp_path):
    assert python(PRINT_VARIABLE, cwd=tmp_path, NNUNET_SEMICON_AUTOLOAD="0").strip() == "None"


def test_the_callback_imports_nothing_but_itself(tmp_path):
    """This is what keeps ``import torch`` as fast as it was: no import, only a change of the environment."""
    code = """
import sys, os
import nnunet_semicon, nnunet_semicon.autoload as autoload
heavy = {"torch", "nnunetv2", "numpy"} & set(sys.modules)
before = set(sys.modules)
for _ in range(1000):
    autoload.register()
print(heavy or "light", set(sys.modules) - before or "nothing", os.environ["nnUNet_extTrainer"].count("nnunet_ext"))
"""
    assert python(code, cwd=tmp_path).strip() == "light nothing 1"


def test_a_spawned_worker_sees_the_folder(tmp_path, installed):
    code = """
import multiprocessing, os
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        os.environ.pop("nnUNet_extTrainer", None)
        import torch
        print(pool.apply(os.getenv, ("nnUNet_extTrainer",)))  # started before torch was imported here
        with multiprocessing.get_context("spawn").Pool(1) as late:
            print(late.apply(os.getenv, ("nnUNet_extTrainer",)))
        print(pool.apply(eval, ("__import__('torch') and __import__('os').environ['nnUNet_extTrainer']",)))
"""
    assert python(code, cwd=tmp_path).splitlines() == ["None", *[str(installed / "nnunet_ext")] * 2]


def test_nnunet_finds_every_trainer_and_that_of_the_user(tmp_path, user_folder, installed):
    assert trainers.__all__
    names = ["nnUNetTrainerOfTheUser", *trainers.__all__]
    output = python(FIND, *names, cwd=tmp_path, nnUNet_extTrainer=str(user_folder))
    assert found(output)[0][:2] == ["my_trainers", "False"]
    expected = [["nnunet_semicon.trainers", "True", str(installed / "trainers.py")]] * len(trainers.__all__)
    assert found(output)[1:] == expected


def test_trainer_classes_can_be_pickled_for_workers():
    for name in trainers.__all__:
        cls = getattr(trainers, name)
        assert cls.__name__ == name
        assert pickle.loads(pickle.dumps(cls)) is cls


# --- from a wheel ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(shared):
    """The wheel, built from the checkout."""
    (path,) = shared("wheel", build_wheel).glob("*.whl")
    return path


def build_wheel(folder: Path) -> None:
    """Build the wheel of the checkout into ``folder``."""
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "--wheel-dir", str(folder)]
    if find_spec("hatchling") is not None:  # otherwise pip fetches it
        command.append("--no-build-isolation")
    subprocess.run(command, check=True, cwd=folder, env=clean_environment())


@pytest.fixture(scope="module")
def wheel_environment(wheel, shared):
    """An environment with only the wheel; everything else comes from the environment that runs the tests."""
    folder = shared("wheel_environment", lambda folder: install_wheel(wheel, folder))
    (site_packages,) = folder.glob("lib/python*/site-packages")
    return folder, site_packages


def install_wheel(wheel: Path, folder: Path) -> None:
    """Make an environment in ``folder`` and install the wheel into it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # Behind its own site-packages. The .pth files in these folders are not read: an editable install stays out.
    paths = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site_packages / "parent.pth").write_text("\n".join(paths))
    # --ignore-installed: the package of the environment that runs the tests is in sight
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    subprocess.run(
        [*command, "--no-deps", "--no-index", "--ignore-installed", str(wheel)], check=True, env=clean_environment()
    )


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "nnunet_semicon/nnunet_ext/semicon_trainers.py" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"nnunet_semicon"}
    in_checkout = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nnunet_semicon").rglob("*.py")}
    assert in_checkout <= set(names)


def test_nnunet_finds_every_trainer_of_the_wheel(wheel_environment, tmp_path):
    folder, site_packages = wheel_environment
    output = python(FIND, *trainers.__all__, cwd=tmp_path, executable=str(folder / "bin" / "python"))
    installed = str(site_packages / "nnunet_semicon" / "trainers.py")
    assert found(output) == [["nnunet_semicon.trainers", "True", installed]] * len(trainers.__all__)


def test_the_command_of_the_wheel_prints_its_own_folder(wheel_environment, tmp_path):
    folder, site_packages = wheel_environment
    done = subprocess.run(
        [folder / "bin" / "semicon", "doctor", "--print-export"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"export nnUNet_extTrainer={site_packages / 'nnunet_semicon' / 'nnunet_ext'}\n"
