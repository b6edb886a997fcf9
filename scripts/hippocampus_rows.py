"""What the tables on Hippocampus compare: rows, the configurations they train in, and the runs that fill them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

SEEDS = (0, 1, 2)
FOLD = 2
BATCH_SIZE = 32
LABELED_PER_STEP = 16
LENGTH = ("num_epochs=6", "num_val_iterations_per_epoch=5", "save_every=1")
PREFIX = STOCK = "nnUNetTrainer"


@dataclass(frozen=True)
class Pretraining:
    """What a training starts from. One per seed serves every row that names it.

    Attributes:
        trainer: name for ``-tr``.
        variant: what it changes, as part of the configuration's name; empty: nothing.
        changes: what it changes, for ``semicon configure --set``.
        words: its name in a table.
        batch_size: rows of a step.
        labeled: it sees the labeled scans of the fold alone; otherwise all images, without labels, which are the same
            in every fold.
        start: whose weights it starts from itself; None: from scratch.
    """

    trainer: str
    variant: str = ""
    changes: tuple[str, ...] = ()
    words: str = ""
    batch_size: int = BATCH_SIZE
    labeled: bool = False
    start: "Pretraining | None" = None

    @property
    def name(self) -> str:
        """Name of the configuration after that of its parent, without the seed."""
        return "_".join(["short_pretrain", *[self.variant] * bool(self.variant)])

    @property
    def settings(self) -> tuple[str, ...]:
        """What ``semicon configure --set`` gets."""
        return (f"batch_size={self.batch_size}", *LENGTH, *self.changes)


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        trainer: name for ``-tr``.
        labeled: labeled images per step.
        variant: what it changes, as part of the configuration's name; empty: nothing.
        changes: what it changes, for ``semicon configure --set``.
        start: whose weights it starts from; None: from scratch.
        words: the variant in a table.
        second: trainer that builds the second network, where it is measured instead of the planned one; both come from
            the same training.
    """

    trainer: str
    labeled: int
    variant: str = ""
    changes: tuple[str, ...] = ()
    start: Pretraining | None = None
    words: str = ""
    second: str = ""

    @property
    def trained(self) -> "Row":
        """The row of the training that it measures."""
        return replace(self, second="")

    @property
    def name(self) -> str:
        """Name of the configuration after that of its parent, without the seed."""
        parts = ["short", *["full"] * (self.labeled == BATCH_SIZE), *[self.variant] * bool(self.variant)]
        if self.start is not None:
            start = self.start.trainer.removeprefix(PREFIX)
            parts += ["from", start, *[self.start.variant] * bool(self.start.variant)]
        return "_".join(parts)

    @property
    def settings(self) -> tuple[str, ...]:
        """What ``semicon configure --set`` gets; without ``labeled_per_step`` the control takes all rows."""
        share = () if self.labeled == BATCH_SIZE else (f"labeled_per_step={self.labeled}",)
        return (f"batch_size={BATCH_SIZE}", *share, *LENGTH, *self.changes)


@dataclass(frozen=True)
class Cell:
    """One run: a row or a pre-training with one seed, in a configuration that inherits from ``parent``."""

    row: Row | Pretraining
    parent: str
    seed: int

    @property
    def configuration(self) -> str:
        """The configuration it trains in: nnU-Net's result folder knows no seed."""
        return f"{self.parent}_{self.row.name}_s{self.seed}"

    @property
    def name(self) -> str:
        """Name of its JSON file, without ending."""
        return f"{self.row.trainer}__{self.configuration}" + ("__second" if self.is_second else "")

    @property
    def start(self) -> "Cell | None":
        """The pre-training of the same seed that it starts from."""
        return None if self.row.start is None else Cell(self.row.start, self.parent, self.seed)

    @property
    def is_second(self) -> bool:
        """Whether it measures the second network of a training, and trains nothing itself."""
        return isinstance(self.row, Row) and bool(self.row.second)

    @property
    def built_by(self) -> str:
        """The trainer that builds its network, for ``-tr`` in prediction."""
        return self.row.second if isinstance(self.row, Row) and self.row.second else self.row.trainer

    @property
    def needs(self) -> "Cell | None":
        """The cell whose checkpoint must be there first."""
        if isinstance(self.row, Row) and self.row.second:
            return replace(self, row=self.row.trained)
        return self.start


CONTROL, MEAN_TEACHER, SPCON = (f"{PREFIX}{name}" for name in ("SupervisedControl", "MeanTeacher", "SPCon"))
SIMCLR_PRETRAIN, LOCAL = f"{PREFIX}SimCLRPretrain", f"{PREFIX}SupervisedLocal"

# what the user would have run, and the same number of labeled images as the methods get
CONTROLS = (Row(CONTROL, BATCH_SIZE), Row(CONTROL, LABELED_PER_STEP))
METHODS = (Row(MEAN_TEACHER, LABELED_PER_STEP), Row(SPCON, LABELED_PER_STEP))
SP_CON = METHODS[-1]
ROWS = (*CONTROLS, *METHODS)

# which meta-label does it? ``SP_CON`` has both
VARIANTS = (
    Row(SPCON, LABELED_PER_STEP, "position", ("lambda.patient=0",), words="position only"),
    Row(SPCON, LABELED_PER_STEP, "patient", ("lambda.position=0",), words="patient only"),
)

# pre-training, then the second control; the paper's variants
SP_CON_PRETRAIN = Pretraining(f"{SPCON}Pretrain", words="SP-Con, linear")
PRETRAININGS = (
    Pretraining(SIMCLR_PRETRAIN, words="SimCLR"),
    Pretraining(SIMCLR_PRETRAIN, "linear", ("regularizer=linear",), "SimCLR, self-paced"),
    Pretraining(f"{PREFIX}MetaContrastPretrain", words="meta-label contrast"),
    Pretraining(f"{SPCON}Pretrain", "hard", ("regularizer=hard",), "SP-Con, hard"),
)
FINE_TUNED = Row(CONTROL, LABELED_PER_STEP, start=SP_CON_PRETRAIN)
OTHERS_FINE_TUNED = tuple(Row(CONTROL, LABELED_PER_STEP, start=start) for start in PRETRAININGS)
JOINT = (
    Row(SPCON, LABELED_PER_STEP, "plain", ("regularizer=none",), words="plain contrast"),
    Row(SPCON, LABELED_PER_STEP, start=SP_CON_PRETRAIN),
)

# supervised local contrast: the stages of Hu et al. and their Table 1, then the joint trainer
LOCAL_BATCH = 8  # 4 labeled images in two views, as in the authors' code
GLOBAL = Pretraining(
    SIMCLR_PRETRAIN, "hu", ("optimizer=adam", "learning_rate=0.0001", "temperature=0.5"), words="global"
)
SAMPLINGS = {"exact": (), "stride": ("stride=4",), "block": ()}


def _local(sampling: str, start: Pretraining | None = None, form: str = "supcon") -> Row:
    """Return the fine-tuning after the local stage, with or without the global one before it."""
    variant = "_".join(["global"] * (start is not None) + [sampling] + [form] * (form != "supcon"))
    words = f"{'global + ' if start else ''}local ({sampling}{', eq. 2' if form == 'hu_eq2' else ''})"
    changes = (f"sampling={sampling}", *SAMPLINGS[sampling], *[f"form={form}"] * (form != "supcon"))
    stage = Pretraining(f"{LOCAL}Pretrain", variant, changes, words, LOCAL_BATCH, labeled=True, start=start)
    return Row(CONTROL, LABELED_PER_STEP, start=stage)


LOCAL_FOLDS = {2: 4, 3: 9, 4: 18, 5: 35}  # fold -> labeled scans: our 4, then the paper's 5, 10 and 20 % of 175
LOCAL_EXACT = _local("exact")
LOCAL_OTHERS = (
    Row(CONTROL, LABELED_PER_STEP, start=GLOBAL),
    *(_local(sampling) for sampling in ("stride", "block")),
    *(_local(sampling, GLOBAL) for sampling in SAMPLINGS),
    _local("exact", form="hu_eq2"),
)
LOCAL_JOINT = Row(LOCAL, LABELED_PER_STEP)
LOCAL_ROWS = (*CONTROLS, LOCAL_EXACT, LOCAL_JOINT, *LOCAL_OTHERS)

# pseudo-label guided patch contrast: the poster's ablation, its sampling table, and where a patch comes from
PLGCL = f"{PREFIX}PLGCL"
PLGCL_FOLDS = {2: 4, 0: 1, 4: 18, 5: 35}  # fold -> labeled scans; 18 and 35: the poster's 10 and 20 %
PLGCL_ROW = Row(PLGCL, LABELED_PER_STEP)
PLGCL_VARIANTS = (
    Row(PLGCL, LABELED_PER_STEP, "no_contrast", ("lambda_patch=0",), words="no contrast"),
    Row(PLGCL, LABELED_PER_STEP, "no_warmup", ("supervised_warmup=0",), words="no warm-up"),
    Row(PLGCL, LABELED_PER_STEP, "neither", ("lambda_patch=0", "supervised_warmup=0"), words="no warm-up, no contrast"),
    *(Row(PLGCL, LABELED_PER_STEP, g, (f"guidance={g}",), words=f"guidance {g}") for g in ("confidence", "cosine")),
    Row(PLGCL, LABELED_PER_STEP, "no_guidance", ("guidance=none",), words="no guidance"),
    Row(PLGCL, LABELED_PER_STEP, "image", ("patch_source=image",), words="windows encoded again"),
)

# two networks that teach each other; rows of MCSC: the poster's ablation A1, then of A2 what differs here: the planned
# network has no map at 1/8, so that this scale is taken at 1/4
SWIN, CPS, TEACHING, MCSC = (f"{PREFIX}{name}" for name in ("SwinUNet", "CPS", "CrossTeaching", "MCSC"))
MCSC_FOLDS = {2: 4, 0: 1}  # fold -> labeled scans
_SCALE_1 = ("scales.1/8=0",)
_UNBALANCED = ("balanced=false", *_SCALE_1)


def _both(row: Row, second: str = SWIN) -> tuple[Row, Row]:
    """Return the rows of both networks of a training; ``second``: trainer that builds the second one."""
    return row, replace(row, second=second)


MCSC_ROWS = _both(Row(MCSC, LABELED_PER_STEP))
MCSC_BASELINES = (
    Row(SWIN, LABELED_PER_STEP),
    *_both(Row(CPS, LABELED_PER_STEP), STOCK),
    *_both(Row(TEACHING, LABELED_PER_STEP)),
)
_VARIANTS = (
    Row(MCSC, LABELED_PER_STEP, "scl", ("cross_labels=false", *_UNBALANCED), words="contrast alone, scale 1"),
    Row(MCSC, LABELED_PER_STEP, "cross", _UNBALANCED, words="with cross labels, scale 1"),
    Row(MCSC, LABELED_PER_STEP, "scale1", _SCALE_1, words="balanced too, scale 1"),
    Row(MCSC, LABELED_PER_STEP, "scale8", ("scales.1=0",), words="scale 1/8 alone"),
    Row(MCSC, LABELED_PER_STEP, "no_background", ("background_anchors=false",), words="no background anchors"),
)
MCSC_VARIANTS = tuple(row for variant in _VARIANTS for row in _both(variant))

LABELED_ONLY = frozenset({CONTROL, LOCAL, SWIN})  # trainers whose runs use no unlabeled scan

# table -> its rows, in the order in which they are run: what the table cannot do without first
TABLES: dict[str, tuple[Sequence[Row], ...]] = {
    "sp_con": (ROWS, (FINE_TUNED,), VARIANTS, OTHERS_FINE_TUNED, JOINT),
    "supervised_local": ((*CONTROLS, LOCAL_EXACT, LOCAL_JOINT), LOCAL_OTHERS),
    "plgcl": ((*CONTROLS, PLGCL_ROW), PLGCL_VARIANTS),
    "mcsc": ((*CONTROLS, *MCSC_ROWS), MCSC_BASELINES, MCSC_VARIANTS),
}
