"""What a method shows of itself at a few moments of a run: arrays in the fold folder, and a picture of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nnunet_semicon.files import replacing
from nnunet_semicon.methods.base import Show
from nnunet_semicon.pictures import pseudo_labels, self_pacing

FOLDER = "snapshots"

# name of what a method shows -> file and function that draws them
PICTURES: dict[str, tuple[str, Callable[[Sequence[Any], Path], None]]] = {
    "self_pacing": (self_pacing.FILE, self_pacing.draw),
    "pseudo_labels": (pseudo_labels.FILE, pseudo_labels.draw),
}


class Snapshots:
    """Keeps one file per moment, ``snapshots/<name>_epoch0123.npz``, and redraws the picture after each.

    Args:
        folder: the fold folder.
        show: what is shown, and when; its name is a key of :data:`PICTURES`.
        epochs: length of the run.
    """

    def __init__(self, folder: str, show: Show, epochs: int) -> None:
        self.fold_folder = Path(folder)
        self.name = show.name
        self.due = {math.ceil(part * epochs) for part in show.moments}

    def truncate(self, epochs: int) -> None:
        """Forget what was kept after more than ``epochs`` finished epochs: a resumed run makes it again."""
        for finished, path in self._files():
            if finished > epochs:
                path.unlink()

    def is_due(self, finished_epochs: int) -> bool:
        """Whether this is one of the moments."""
        return finished_epochs in self.due

    def add(self, finished_epochs: int, arrays: Mapping[str, Tensor]) -> None:
        """Keep the arrays (any shape, on any device) and redraw."""
        folder = self.fold_folder / FOLDER
        folder.mkdir(exist_ok=True)
        path = folder / f"{self.name}_epoch{finished_epochs:04d}.npz"
        content: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in arrays.items()}
        with replacing(path) as (temporary,), temporary.open("wb") as kept:  # to a path numpy would add `.npz`
            np.savez_compressed(kept, **content)
        file, draw = PICTURES[self.name]
        draw([(epoch, dict(np.load(moment))) for epoch, moment in self._files()], self.fold_folder / file)

    def _files(self) -> list[tuple[int, Path]]:
        """Return finished epochs and file of each moment, in order."""
        paths = sorted((self.fold_folder / FOLDER).glob(f"{self.name}_epoch*[0-9].npz"))
        return sorted((int(path.stem.rpartition("epoch")[2]), path) for path in paths)
