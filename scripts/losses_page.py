"""The part of docs/performance.md about the contrastive losses, and its figure, from ``benchmark_losses.py``."""

import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tables import NOT_RUN, PAGES_COMMAND, markdown_table, milliseconds

LOSSES = "benchmark_losses_cpu.json"
COMMAND = f"python scripts/benchmark_losses.py --out docs/results/{LOSSES}"
FIGURE = "losses.png"
DRAWN_DIMENSION = 64
NAMES = {
    "streamed": "nnunet_semicon",
    "matrix": "matrix of all pairs",
    "pytorch-metric-learning": "pytorch-metric-learning",
}
COLORS = {"streamed": "#D55E00", "matrix": "#0072B2", "pytorch-metric-learning": "#009E73"}


def losses_section(results: Path) -> str:
    """Return the section for every ``benchmark_losses_*.json`` in ``results``."""
    files = sorted(results.glob("benchmark_losses_*.json"))
    if not files:
        return f"{NOT_RUN}; it is made by:\n\n```bash\n{COMMAND}\n{PAGES_COMMAND}\n```"
    return "\n\n".join(_tables(json.loads(file.read_text()), file.name) for file in files)


def _tables(content: dict[str, Any], name: str) -> str:
    header = ["N", "D"]
    header += [f"{what} {unit}" for unit in ("(ms)", "(MiB)") for what in NAMES.values()]
    header += ["matrix / ours, time", "ours / three products, time"]
    lines = []
    for row in content["sizes"]:
        seconds, memory = row["seconds"], row["mib"]
        times = [milliseconds(seconds[key]) if key in seconds else NOT_RUN for key in NAMES]
        peaks = [f"{memory[key]:.0f}" if key in memory else NOT_RUN for key in NAMES]
        gain = f"{seconds['matrix'] / seconds['streamed']:.1f}" if "matrix" in seconds else NOT_RUN
        share = f"{seconds['streamed'] / row['products_seconds']:.2f}"
        lines.append([str(row["n"]), str(row["d"]), *times, *peaks, gain, share])
    forms = content["forms"]
    plain = next(iter(forms["seconds"].values()))
    form_lines = [
        [what, milliseconds(seconds), f"{seconds / plain:.2f}x", f"{forms['mib'][what]:.0f}"]
        for what, seconds in forms["seconds"].items()
    ]
    variables = [f"{key}={value}" for key, value in content["environment"].items()]
    command = COMMAND.replace(LOSSES, name)
    again = f" (memory measured again with {content['memory_commit']})" if "memory_commit" in content else ""
    checked = ", ".join(f"{e['loss']:.0e} and {e['gradient']:.0e} (D = {e['d']})" for e in content["errors"])
    return "\n\n".join(
        [
            "One forward and backward pass of supervised contrast over N vectors of D dimensions; memory is what it "
            "takes beyond the vectors. *matrix of all pairs*: the textbook form in torch; both it and "
            "pytorch-metric-learning's `SupConLoss` stop where their matrices fill the memory of a workstation. *three "
            "products*: the matrix products N x D x N that the loss and its gradient need, alone.",
            f"![time and memory over N](figures/{FIGURE})",
            markdown_table(header, lines),
            f"The forms at N = {forms['n']}, D = {forms['d']}, four classes, four fifths of the vectors background:",
            markdown_table(["loss", "time (ms)", "relative to SupCon", "memory (MiB)"], form_lines),
            f"Against a float64 matrix at N = {content['checked_n']}, the float32 loss and its gradient are off by "
            f"{checked}, relative to the largest entry.",
            f"{content['device_name']}, {content['cpu_count']} processors, {content['threads']} torch thread(s); "
            f"torch {content['versions']['torch']}; {content['date'][:10]}, commit {content['commit']}{again}, load "
            f"average {content['load_average']} before it started; made by `{' '.join([*variables, command])}`.",
        ]
    )


def draw_losses(results: Path, folder: Path) -> None:
    """Draw time and memory over N into ``folder``; nothing without measurements on a CPU."""
    file = results / LOSSES
    if not file.is_file():
        return
    rows = [row for row in json.loads(file.read_text())["sizes"] if row["d"] == DRAWN_DIMENSION]
    figure = Figure(figsize=(8, 3.2), dpi=110, facecolor="white")
    figure.set_layout_engine("constrained")
    for axis, key, unit in zip(figure.subplots(1, 2), ("seconds", "mib"), ("time (s)", "memory (MiB)"), strict=True):
        for loss, words in NAMES.items():
            points = [(row["n"], max(row[key][loss], 1e-4)) for row in rows if loss in row[key]]
            axis.plot(*zip(*points, strict=True), "o-", color=COLORS[loss], label=words, markersize=4)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("vectors N")
        axis.set_title(f"{unit}, forward and backward, D = {DRAWN_DIMENSION}", fontsize=9)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize=8, frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(folder / FIGURE)
