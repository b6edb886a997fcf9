"""Data flows one way: which part of the package may import what."""

import ast
import subprocess
import sys
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import nnunet_semicon

PACKAGE = "nnunet_semicon"
ROOT = Path(nnunet_semicon.__file__).parent

ANYTHING = "*"


class Rule(NamedTuple):
    """What the modules of one part may import, besides the standard library, ``errors`` and the part itself."""

    ours: frozenset[str] | set[str] = frozenset()
    libraries: frozenset[str] | set[str] = frozenset()
    itself: bool = True


TABLE = {
    "__init__": Rule(),
    "__main__": Rule(ours={"cli"}),
    "errors": Rule(),
    "files": Rule(),
    "commands": Rule(),
    "processor": Rule(),
    "tables": Rule(libraries={"rich"}),
    "autoload": Rule(),
    "nnunet_ext": Rule(ours={"trainers"}),
    "losses": Rule(libraries={"scipy", "torch"}),
    "meta_labels": Rule(libraries={"numpy"}),
    "networks": Rule(libraries={"torch", "timm"}),
    "configuration": Rule(ours={"files", "meta_labels", "tables"}, libraries={"numpy", "pydantic", "pydantic_core"}),
    "data": Rule(
        ours={"files", "meta_labels"},
        libraries={
            "acvl_utils",
            "batchgenerators",
            "batchgeneratorsv2",
            "blosc2",
            "nnunetv2",
            "numpy",
            "threadpoolctl",
            "torch",
            "tqdm",
            "SimpleITK",
        },
    ),
    # A method is never built from another one: of its own folder only the base and shared parts.
    "methods": Rule(
        ours={
            "methods.base",
            "methods.copy_paste",
            "methods.local_term",
            "methods.negatives",
            "methods.meta_contrast",
            "methods.patch_term",
            "methods.scale_term",
            "methods.second_network",
            "methods.self_training",
            "methods.teacher",
            "losses",
            "networks",
            "configuration",
            "data.batch",
            "meta_labels.table",
        },
        libraries={"numpy", "pydantic", "torch"},
        itself=False,
    ),
    "pictures": Rule(ours={"files", "meta_labels"}, libraries={"matplotlib", "numpy"}),
    "training": Rule(
        ours={
            "files",
            "losses.masked",
            "methods.base",
            "methods.teacher",
            "networks.exchange",
            "networks.feature_dropout",
            "networks.taps",
            "networks.swin_unet",
            "networks.swin_weights",
            "data",
            "configuration",
            "pictures",
            "processor",
            "networks.precision",
        },
        libraries={"batchgenerators", "batchgeneratorsv2", "matplotlib", "nnunetv2", "numpy", "torch"},
    ),
    "trainers": Rule(ours={"training", "methods"}),
    "experiments": Rule(
        ours={"commands", "configuration", "data", "files", "pictures", "processor", "training.checkpoint"},
        libraries={"nnunetv2", "numpy", "submitit", "torch", "tqdm", "yaml"},
    ),
    "workspace": Rule(ours={"configuration", "data", "files"}, libraries={"nnunetv2"}),
    "catalogue": Rule(ours={"configuration", "trainers", "training"}, libraries={"nnunetv2", "pydantic"}),
    "checks": Rule(
        ours={
            "autoload",
            "catalogue",
            "configuration",
            "data",
            "files",
            "meta_labels",
            "experiments",
            "processor",
            "training.semi_trainer",
            "workspace",
        },
        libraries={"nnunetv2"},
    ),
    "inference": Rule(
        ours={"configuration", "data", "evaluation", "training.checkpoint", "trainers", "workspace"},
        libraries={"nnunetv2", "torch"},
    ),
    "demo": Rule(ours={"commands", "processor"}, libraries={"matplotlib", "numpy", "scipy", "SimpleITK"}),
    "evaluation": Rule(
        ours={"files", "tables", "workspace"},
        libraries={"nnunetv2", "numpy", "scipy", "surface_distance", "tqdm"},
    ),
    "cli": Rule(ours={ANYTHING}, libraries={ANYTHING}),
}

# Nothing imports a command, and no command is built from another one: they have only these modules in common.
COMMANDS_SHARE = {"cli.key_values", "cli.sweep_display"}
ENTRY_POINT = "cli.main"

MODULES = sorted(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in ROOT.rglob("*.py"))


def imported_names(source: str, module: str) -> Iterable[str]:
    """Absolute dotted names of everything that ``source``, the module ``module`` of the package, imports anywhere."""
    folder = [PACKAGE, *module.split(".")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = folder[: len(folder) - node.level + 1] if node.level else []
            base = ".".join([*prefix, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from package.losses import pairs` imports a module, `from package.losses.pairs import Pairs` a name.
                name = f"{base}.{alias.name}".removeprefix(f"{PACKAGE}.")
                yield f"{PACKAGE}.{name}" if name in MODULES or f"{name}.__init__" in MODULES else base


def is_or_is_in(name: str, allowed: Iterable[str]) -> bool:
    return ANYTHING in allowed or any(name == a or name.startswith(f"{a}.") for a in allowed)


def may_import_of_cli(part: str, ours: str) -> bool:
    return ours == ENTRY_POINT if part == "__main__" else part == "cli" and ours in COMMANDS_SHARE


def forbidden_imports(source: str, module: str) -> list[str]:
    """What ``source`` imports, as the module ``module`` of the package (dotted, without the package), and may not."""
    part = module.split(".")[0]
    rule = TABLE[part]
    found = []
    for name in imported_names(source, module):
        ours = name.removeprefix(f"{PACKAGE}.")
        if name == PACKAGE:  # the version
            continue
        if ours != name:
            allowed = rule.ours | {"errors"} | ({part} if rule.itself else set())
            if not is_or_is_in(ours, allowed) or (is_or_is_in(ours, {"cli"}) and not may_import_of_cli(part, ours)):
                found.append(name)
        elif name.split(".")[0] not in sys.stdlib_module_names and not is_or_is_in(name, rule.libraries):
            found.append(name)
    return sorted(set(found))


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_table(module):
    assert module.split(".")[0] in TABLE, f"{module}: add this part of the package, and what it may import, to TABLE"
    path = ROOT / f"{module.replace('.', '/')}.py"
    assert forbidden_imports(path.read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("losses.x", "import torch.nn.functional as F\nimport math\nfrom nnunet_semicon.losses.pairs import Pairs", []),
        ("losses.x", "from nnunet_semicon.errors import UserError\nfrom .pairs import Pairs", []),
        ("losses.x", "import numpy as np", ["numpy"]),
        ("losses.x", "from nnunet_semicon.methods.base import Method", ["nnunet_semicon.methods.base"]),
        ("losses.x", "from nnunet_semicon.methods import base", ["nnunet_semicon.methods.base"]),
        ("losses.x", "from nnunet_semicon import methods", ["nnunet_semicon.methods"]),
        ("losses.x", "from ..methods.base import Method", ["nnunet_semicon.methods.base"]),
        ("losses.x", "from .. import methods, losses", ["nnunet_semicon.methods"]),
        ("losses.x", "def f():\n    from nnunetv2 import paths", ["nnunetv2"]),
        ("losses.x", "if TYPE_CHECKING:\n    import nnunetv2.paths", ["nnunetv2.paths"]),
        ("losses.x", "import torchvision", ["torchvision"]),
        ("meta_labels.x", "import numpy.typing\nimport torch", ["torch"]),
        ("methods.x", "from nnunet_semicon.methods.base import Method\nfrom nnunet_semicon.data.batch import T", []),
        ("methods.x", "from nnunet_semicon.methods.sp_con import SPCon", ["nnunet_semicon.methods.sp_con"]),
        ("methods.x", "from nnunet_semicon.data.loader import L", ["nnunet_semicon.data.loader"]),
        ("methods.x", "from nnunet_semicon.data import loader, batch", ["nnunet_semicon.data.loader"]),
        ("training.x", "from nnunet_semicon.networks.ema import E", ["nnunet_semicon.networks.ema"]),
        ("training.x", "from nnunet_semicon.trainers import T", ["nnunet_semicon.trainers"]),
        ("trainers", "from nnunet_semicon import __version__\nfrom nnunet_semicon.methods.sp_con import SPCon", []),
        ("trainers", "from nnunet_semicon.cli.main import main", ["nnunet_semicon.cli.main"]),
        (
            "cli.x",
            "import torch, SimpleITK\nfrom nnunet_semicon.cli.key_values import a\nimport nnunet_semicon.data.loader",
            [],
        ),
        ("cli.x", "from nnunet_semicon.cli.split import run", ["nnunet_semicon.cli.split"]),
        ("cli.x", "from nnunet_semicon.cli import main", ["nnunet_semicon.cli.main"]),
        ("__main__", "from nnunet_semicon.cli.main import main", []),
        ("__main__", "from nnunet_semicon.cli.split import run", ["nnunet_semicon.cli.split"]),
        ("checks.x", "from nnunet_semicon.cli.key_values import a", ["nnunet_semicon.cli.key_values"]),
        ("checks.x", "from nnunet_semicon import catalogue, workspace, trainers", ["nnunet_semicon.trainers"]),
        ("catalogue", "from nnunet_semicon.checks import raw", ["nnunet_semicon.checks.raw"]),
        ("workspace", "from nnunet_semicon import catalogue", ["nnunet_semicon.catalogue"]),
        ("files", "from nnunet_semicon.errors import UserError\nimport json", []),
        ("files", "from nnunet_semicon import workspace", ["nnunet_semicon.workspace"]),
        ("__init__", "import torch", ["torch"]),
    ],
)
def test_the_checker_flags_what_is_forbidden_and_nothing_else(module, source, expected):
    assert forbidden_imports(source, module) == expected


def test_no_modules_import_each_other_in_a_circle():
    sources = {module: (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8") for module in MODULES}
    imports = {
        module: {name.removeprefix(f"{PACKAGE}.") for name in imported_names(source, module)}
        for module, source in sources.items()
    }
    assert imports["cli.split"] >= {"workspace", "data.splits"}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the modules


def test_every_part_of_the_table_that_exists_is_checked():
    assert {module.split(".")[0] for module in MODULES} >= {"__init__", "losses", "methods", "training", "cli"}


def test_the_help_of_every_command_loads_no_slow_library():
    code = (
        "import sys; from nnunet_semicon.cli.main import COMMANDS, build_parser; [build_parser(c) for c in COMMANDS]; "
        "print([m for m in ('torch', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", ["nnunet_semicon", "nnunet_semicon.autoload", "nnunet_semicon.cli.main"])
def test_light_modules_load_neither_torch_nor_nnunetv2(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'nnunetv2', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
