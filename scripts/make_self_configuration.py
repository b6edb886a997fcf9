"""Writes the generated tables of docs: hyper-parameters, rules on example plans, and what a method's paper prints.

Run after a change of a rule or a default; a test keeps pages and code in step.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from nnunet_semicon import trainers
from nnunet_semicon.configuration.config import allowed, default_of, help_of, keys_of, source_of
from nnunet_semicon.configuration.resolved import resolve_run
from nnunet_semicon.configuration.run import RunConfig
from nnunet_semicon.configuration.wording import in_words
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
            [f"`{key}`", in_words(default_of(f)), allowed(f), help_of(f), source_of(f)]
            for key, f in keys_of(config_class).items()
        ]
        if rows:
            parts.append(f"**{title}**\n\n" + table(["key", "default", "allowed", "meaning", "source"], rows))
        parts += [sentence for name in names if (sentence := other_defaults(name))]
    return "\n\n".join(parts)


def other_defaults(trainer: str) -> str:
    """Say what a trainer sets in the place of the common defaults; an empty text where it sets nothing."""
    own = {**values(getattr(trainers, trainer).method_class.defaults), **getattr(trainers, trainer).defaults}
    words = ", ".join(f"`{key}` {in_words(value)}" for key, value in own.items())
    return f"`{trainer}` has other defaults: {words}." if words else ""


def values(derived: Any) -> dict[str, Any]:
    return {key: entry.value for key, entry in derived.items()}


def paper_table(trainer: str) -> str:
    """Return what ``preset=paper`` sets for a trainer, beside the recommended default."""
    named = getattr(trainers, trainer)
    method = named.method_class
    fields = {**keys_of(RunConfig), **keys_of(method.Config)}
    defaults = {**{key: default_of(f) for key, f in fields.items()}, **values(method.defaults), **named.defaults}
    rows = [
        [f"`{key}`", "derived" if defaults[key] is None else in_words(defaults[key]), in_words(value), where]
        for key, (value, where) in method.paper.items()
    ]
    return table(["key", "recommended", "paper", "where"], rows)


def examples() -> str:
    """Return what the rules give on every example."""
    parts = []
    for name in EXAMPLES:
        example = read_example(name)
        for configuration in example["configurations"]:
            run = resolved(example, configuration, "nnUNetTrainerSPCon")
            keys = [*SHOWN, *run.reasons]
            rows = [[f"`{key}`", in_words(run.settings[key].value), run.settings[key].reason] for key in keys]
            if "architecture" in example["configurations"][configuration]:
                local = resolved(example, configuration, LOCAL)
                rows += [
                    [f"`{key}` (local)", in_words(local.settings[key].value), reason]
                    for key, reason in local.reasons.items()
                ]
            planned = example["configurations"][configuration]
            size = f"batch size {planned['batch_size']}, patch {' x '.join(map(str, planned['patch_size']))}"
            title = f"**{example['about']}**: `{configuration}`, {size}"
            parts.append(f"{title}\n\n" + table(["key", "value", "reason"], rows))
    return "\n\n".join(parts)


def page(old: str) -> str:
    """Return a page with its generated parts replaced."""
    return MARKED.sub(lambda found: marked(found["name"]), old)


def marked(name: str) -> str:
    """Return the generated part of a name, between its marks."""
    text = paper_table(name.removeprefix("paper ")) if name.startswith("paper ") else PARTS[name]()
    return f"<!-- begin {name}: {BY} -->\n\n{text}\n\n<!-- end {name} -->"


BY = "written by scripts/make_self_configuration.py"
PARTS = {"hyper-parameters": hyper_parameters, "examples": examples}
MARKED = re.compile(rf"<!-- begin (?P<name>[\w -]+): {re.escape(BY)} -->.*?<!-- end (?P=name) -->", re.DOTALL)
PAGES = (PAGE, *sorted((REPOSITORY / "docs" / "methods").glob("*.md")))


def main() -> int:
    """Rewrite the pages."""
    for path in PAGES:
        path.write_text(page(path.read_text()))
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
