"""Writes the generated parts of docs/self_configuration.md: hyper-parameters, and the rules on example plans.

Run after a change of a rule or a default; a test keeps page and code in step.
"""

import json
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from nnunet_semicon import trainers
from nnunet_semicon.configuration.config import RunConfig, default_of, key_of
from nnunet_semicon.configuration.resolved import in_words, resolve_run
from nnunet_semicon.meta_labels.table import MetaTable, column

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "self_configuration.md"
PLANS = REPOSITORY / "tests" / "plans"
EXAMPLES = ("acdc", "hippocampus", "promise12", "mmwhs", "spleen", "rgb2d", "volume3d")
LOCAL = "nnUNetTrainerSupervisedLocal"
SHOWN = ("labeled_per_step", "student_rows", "slice_axis", "partitions")  # what follows from the data, for every method


def read_example(name: str) -> dict[str, Any]:
    """Return a trimmed plans file with its fingerprint; ``meta`` lists the labels of four typical scans."""
    return dict(json.loads((PLANS / f"{name}.json").read_text()))


def example_meta(example: dict[str, Any]) -> MetaTable:
    cases = [f"case{i}" for i in range(len(example["meta"]["patient"]))]
    columns = {
        name: column(dict(zip(cases, values, strict=True)), "example") for name, values in example["meta"].items()
    }
    return MetaTable(tuple(cases), columns)


def resolved(example: dict[str, Any], configuration: str, trainer: str, **block: Any) -> Any:
    """Resolve a trainer on an example."""
    return resolve_run(
        {**example["configurations"][configuration], "semicon": block},
        example,
        example["fingerprint"],
        example_meta(example),
        getattr(trainers, trainer).method_class,
        "cpu",
        "the example",
        defaults=getattr(trainers, trainer).defaults,
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def hyper_parameters() -> str:
    """Return one table per config class: key, default, range, meaning, source; and what a trainer sets otherwise."""
    parts = []
    users: dict[type, list[str]] = {RunConfig: []}
    for name in sorted(trainers.__all__):
        users.setdefault(getattr(trainers, name).method_class.Config, []).append(name)
    for config_class, names in users.items():
        title = ", ".join(f"`{name}`" for name in names) or "every trainer"
        rows = [
            [f"`{key_of(f)}`", in_words(default_of(f)), allowed(f.metadata), f.metadata["help"], f.metadata["source"]]
            for f in fields(config_class)
        ]
        if rows:
            parts.append(f"**{title}**\n\n" + table(["key", "default", "allowed", "meaning", "source"], rows))
        parts += [sentence for name in names if (sentence := other_defaults(name))]
    return "\n\n".join(parts)


def other_defaults(trainer: str) -> str:
    """Say what a trainer sets in the place of its method's defaults; an empty text where it sets nothing."""
    own = getattr(trainers, trainer).defaults
    words = ", ".join(f"`{key}` {in_words(value)}" for key, value in own.items())
    return f"`{trainer}` has other defaults: {words}." if words else ""


def allowed(metadata: Any) -> str:
    if metadata["choices"]:
        return " or ".join(f"`{choice}`" for choice in metadata["choices"])
    low, high = metadata["low"], metadata["high"]
    if low is None and high is None:
        return ""
    if high is None:
        return f"≥ {low}"
    return f"{low} to {high}"


def examples() -> str:
    """Return what the rules give on every example."""
    parts = []
    for name in EXAMPLES:
        example = read_example(name)
        for configuration in example["configurations"]:
            run = resolved(example, configuration, "nnUNetTrainerSPCon")
            keys = [*SHOWN, *run.derived]
            rows = [[f"`{key}`", in_words(run.settings[key].value), run.settings[key].reason] for key in keys]
            if "architecture" in example["configurations"][configuration]:
                local = resolved(example, configuration, LOCAL)
                rows += [
                    [f"`{key}` (local)", in_words(value), reason] for key, (value, reason) in local.derived.items()
                ]
            planned = example["configurations"][configuration]
            size = f"batch size {planned['batch_size']}, patch {' x '.join(map(str, planned['patch_size']))}"
            title = f"**{example['about']}**: `{configuration}`, {size}"
            parts.append(f"{title}\n\n" + table(["key", "value", "reason"], rows))
    return "\n\n".join(parts)


def page(old: str) -> str:
    """Return the page with its generated parts replaced."""
    for name, text in {"hyper-parameters": hyper_parameters(), "examples": examples()}.items():
        begin, end = f"<!-- begin {name}: written by scripts/make_self_configuration.py -->", f"<!-- end {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(old):
            raise SystemExit(f"{PAGE} lacks the lines '{begin}' and '{end}'")
        new = f"{begin}\n\n{text}\n\n{end}"
        old = pattern.sub(lambda _, new=new: new, old)
    return old


def main() -> int:
    """Rewrite the page."""
    PAGE.write_text(page(PAGE.read_text()))
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
