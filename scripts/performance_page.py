"""docs/performance.md, from the benchmarks in docs/results."""

import json
from pathlib import Path
from statistics import mean, median
from typing import Any

from losses_page import losses_section
from tables import NOT_RUN, NOTICE, PAGES_COMMAND, markdown_table, milliseconds

BENCHMARK = "benchmark_step_hippocampus_2d_cpu.json"
BENCHMARK_COMMAND = (
    f"python scripts/benchmark_step.py -d 004 -c 2d_short_s0 --fold 2 --device cpu --out docs/results/{BENCHMARK}"
)
EFFECTS = "benchmark_effects_hippocampus_2d_cpu.json"
EFFECTS_COMMAND = BENCHMARK_COMMAND.replace("--device cpu", "--effects --steps 40").replace(BENCHMARK, EFFECTS)
# two variants of a run are compared: what, the faster one, the other one
COMPARED = (
    ("bfloat16 instead of float32, one thread", "one_thread_bfloat16", "one_thread_memory"),
    ("two jobs of one thread instead of one job of two threads", "two_jobs", "two_threads"),
    ("glibc keeps freed memory, one thread", "one_thread_memory", "one_thread"),
    ("all of it: two jobs in bfloat16 instead of one job as nnU-Net starts it", "all", "stock"),
)
METRICS = "benchmark_metrics_cpu.json"
METRICS_COMMAND = (
    "python scripts/benchmark_metrics.py --labels $nnUNet_raw/Dataset004_Hippocampus/labelsTr "
    f"--out docs/results/{METRICS}"
)
EXPERIMENTS = """Three things make trainings on a CPU faster:

- `precision=bfloat16` in the configuration, where the processor has bfloat16 instructions (`semicon doctor` says so).
  Networks compute in bfloat16 in a training step; losses, weights, checkpoints, validation and prediction stay
  float32. Numbers differ a little from those of float32: give all rows of a table one precision.
- `OMP_NUM_THREADS=1` and as many trainings side by side as there are cores. `nnUNetv2_train -device cpu` gives torch
  all processors; our trainers set the number back to `OMP_NUM_THREADS` where it is given. Otherwise, trainings that
  share cores wait for each other's threads.
- `MALLOC_MMAP_MAX_=0` and `MALLOC_TRIM_THRESHOLD_=4294967296` on Linux with glibc. Freed tensors then stay with the
  process instead of coming back one page fault at a time. `semicon sweep` and `semicon demo` set both for the
  commands that they start, unless you have set them."""


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
    parts += ["## Experiments on a CPU", EXPERIMENTS, effects_section(results / EFFECTS)]
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


def effects_section(file: Path) -> str:
    """Return what precision, jobs and memory change on a CPU."""
    if not file.is_file():
        return f"{NOT_RUN}; it is made by:\n\n```bash\n{EFFECTS_COMMAND}\n{PAGES_COMMAND}\n```"
    content = json.loads(file.read_text())
    return (
        f"{effects_tables(content)}\n\n"
        f"The supervised control on {content['dataset']}, {content['configuration']}. Rounds of a few "
        "steps of every variant in turn; a ratio is the median over rounds. "
        f"{content['device_name']}, {content['cpu_count']} processors; {_versions(content)}; {content['date'][:10]}, "
        f"commit {content['commit']}, load average {content['load_average']} before it started; made by "
        f"`{EFFECTS_COMMAND}`."
    )


def effects_tables(content: dict[str, Any]) -> str:
    """Return two Markdown tables of a ``benchmark_step --effects`` file: the variants, and ratios within a round."""
    variants = content["variants"]
    rates = {name: own["steps_per_second"] for name, own in variants.items()}
    lines = [
        [
            str(own["jobs"]),
            str(own["threads"]),
            own["precision"],
            "yes" if own["keeps_memory"] else "no",
            f"{median(rates[name]):.2f}",
            f"{own['peak_memory_mib']:.0f}",
        ]
        for name, own in variants.items()
    ]
    ratios = []
    for what, faster, other in COMPARED:
        of_rounds = sorted(a / b for a, b in zip(rates[faster], rates[other], strict=True))
        ratios.append([what, f"{median(of_rounds):.2f}x", f"{of_rounds[0]:.2f}x to {of_rounds[-1]:.2f}x"])
    header = ["jobs", "threads of each", "precision", "freed memory stays", "steps per second", "peak of a job (MiB)"]
    return "\n\n".join(
        [markdown_table(header, lines), markdown_table(["effect", "steps per second", "of single rounds"], ratios)]
    )


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
    if content["device"] == "cpu":
        libraries = mean(row["libraries_mib"] for row in content["rows"])
        memory = f"memory is the resident set of the process, {libraries:.0f} MiB of it before the trainer is built"
    else:
        memory = "memory is what torch allocated on the device"
    compiled = "compiled networks" if all(row["compiled"] for row in content["rows"]) else "networks not compiled"
    return (
        f"{content['device_name']}, {content['cpu_count']} processors, {content['threads']} torch thread(s); "
        f"{compiled}; fold {content['fold']}, seed {content['seed']}; "
        f"{content['steps']} steps after {content['warmup']} to warm up; {memory}; {_versions(content)}; "
        f"{content['date'][:10]}, commit {content['commit']}, load average {content['load_average']} before it started."
    )


def _versions(content: dict[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in content["versions"].items())
