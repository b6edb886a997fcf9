"""docs/performance.md, from the benchmarks in docs/results."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

from hippocampus_rows import FOLD
from losses_page import losses_section
from tables import NOT_RUN, NOTICE, PAGES_COMMAND, markdown_table, milliseconds

BENCHMARK = "benchmark_step_hippocampus_2d_cpu.json"
BENCHMARK_COMMAND = (
    f"python scripts/benchmark_step.py -d 004 -c 2d_short_s0 --fold {FOLD} --device cpu --out docs/results/{BENCHMARK}"
)
METRICS = "benchmark_metrics_cpu.json"
METRICS_COMMAND = (
    "python scripts/benchmark_metrics.py --labels $nnUNet_raw/Dataset004_Hippocampus/labelsTr "
    f"--out docs/results/{METRICS}"
)


def performance_page(results: Path) -> str:
    """Return docs/performance.md for the benchmarks in ``results``."""
    parts = [
        "# Performance",
        NOTICE,
        "What a training step of each trainer costs, relative to the stock `nnUNetTrainer` on the same configuration. "
        "Steps are those of the middle of a run, past every warm-up; those of all trainers are interleaved in one "
        "process; batches are drawn before the clock starts. Drawing is timed in a single process, while nnU-Net draws "
        "in several beside the training. Peak memory is that of a process per trainer.",
    ]
    files = sorted(results.glob("benchmark_step_*.json"))
    for file in files:
        content = json.loads(file.read_text())
        where = f"{content['dataset']}, {content['configuration']}, {content['device']}"
        parts += [f"## {where}", benchmark_table(content), _circumstances(content)]
    if not files:
        parts.append(f"No benchmark is run yet. The first one:\n\n```bash\n{BENCHMARK_COMMAND}\n{PAGES_COMMAND}\n```")
    parts += ["## Contrast of many vectors", losses_section(results)]
    parts += ["## `semicon evaluate`", evaluation_speed(results / METRICS)]
    return "\n\n".join(parts) + "\n"


def benchmark_table(content: dict[str, Any]) -> str:
    """Return the Markdown table of one ``benchmark_step`` file; its first row is the stock trainer."""
    stock = content["rows"][0]
    header = ["trainer", "labeled rows", "rows of the student", "step (ms)", "quartiles (ms)", "relative to stock"]
    header += ["drawing a batch (ms)", "peak memory (MiB)", "relative to stock"]
    lines = []
    for row in content["rows"]:
        step = row["step_seconds"]
        lines.append(
            [
                ", ".join([f"`{row['trainer']}`", *(f"{k}={v}" for k, v in row.get("changes", {}).items())]),
                str(row["labeled_rows"]),
                str(row["student_rows"]),
                milliseconds(step["median"]),
                f"{milliseconds(step['q1'])} to {milliseconds(step['q3'])}",
                f"{step['median'] / stock['step_seconds']['median']:.2f}x",
                milliseconds(row["draw_seconds"]["median"]),
                f"{row['peak_memory_mib']:.0f}",
                f"{row['peak_memory_mib'] / stock['peak_memory_mib']:.2f}x",
            ]
        )
    return markdown_table(header, lines)


def evaluation_speed(file: Path) -> str:
    """Return what ``semicon evaluate`` takes, and its distances against medpy's."""
    if not file.is_file():
        return f"{NOT_RUN}; it is made by:\n\n```bash\n{METRICS_COMMAND}\n{PAGES_COMMAND}\n```"
    content = json.loads(file.read_text())
    volume = content["volume"]
    shape = " x ".join(map(str, reversed(volume["shape"])))
    command = [
        ["the whole command", "time (s)", "peak memory (MiB)"],
        *(
            [what, f"{content[key]['seconds']:.1f}", f"{content[key]['peak_memory_mib']:.0f}"]
            for what, key in (
                (f"{content['cases']} cases of {content['dataset']}", "command_on_cases"),
                (f"one volume of {shape} voxels, {volume['classes']} classes", "command_on_volume"),
            )
        ),
    ]
    ratios = [
        ["HD95 and ASD of one mask", "ours (s)", "medpy (s)", "medpy / ours", "largest difference (mm)"],
        *(
            [
                what,
                *(f"{content[key][name]:.3g}" for name in ("nnunet_semicon", "medpy")),
                f"{content[key]['ratio']:.1f}",
                f"{content[key]['largest_difference_mm']:.0e}",
            ]
            for what, key in (("median over the cases", "masks"), ("the largest class of the volume", "volume"))
        ),
    ]
    tables = "\n\n".join(markdown_table(header, lines) for header, *lines in (command, ratios))
    return (
        f"{tables}\n\nBoth packages on the same masks in turn, in one process. {content['device_name']}, "
        f"{content['cpu_count']} processors; {content['date'][:10]}, commit {content['commit']}, load average "
        f"{content['load_average']} before it started; made by `{METRICS_COMMAND}`."
    )


def _circumstances(content: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    if content["device"] == "cpu":
        libraries = mean(row["libraries_mib"] for row in content["rows"])
        memory = f"memory is the resident set of the process, {libraries:.0f} MiB of it before the trainer is built"
    else:
        memory = "memory is what torch allocated on the device"
    compiled = "compiled networks" if all(row["compiled"] for row in content["rows"]) else "networks not compiled"
    return (
        f"{content['device_name']}, {content['cpu_count']} processors, {content['threads']} torch thread(s); "
        f"{compiled}; fold {content['fold']}, seed {content['seed']}; "
        f"{content['steps']} steps after {content['warmup']} to warm up; {memory}; {versions}; "
        f"{content['date'][:10]}, commit {content['commit']}, load average {content['load_average']} before it started."
    )
