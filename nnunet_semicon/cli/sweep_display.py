"""What is shown of the trainings of a sweep while they run: lines, and on a terminal one bar per training."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from nnunet_semicon.experiments.plan import Plan
from nnunet_semicon.experiments.records import progress
from nnunet_semicon.experiments.trainings import Training


class Display:
    """Prints lines above one bar per running training; elsewhere than on a terminal only the lines.

    Args:
        plan: the sweep.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.is_live = sys.stdout.isatty()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"))
        console = Console(highlight=False, soft_wrap=True)
        self.bars = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Display":
        if self.is_live:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_live:
            self.bars.stop()

    def say(self, line: str) -> None:
        """Print a line, or several together."""
        if self.is_live:
            self.bars.console.print(line, markup=False)
        else:
            print(line, flush=True)  # at once, also into a file

    def watch(self, running: Sequence[Training]) -> None:
        """Show the epochs of what runs."""
        if not self.is_live:
            return
        names = {training.name for training in running}
        for name in self.tasks.keys() - names:
            self.bars.remove_task(self.tasks.pop(name))
        for training in running:
            if training.name not in self.tasks:
                self.tasks[training.name] = self.bars.add_task(training.name, total=None)
            done, total = progress(self.plan.folder(training))
            self.bars.update(self.tasks[training.name], completed=done, total=total)
