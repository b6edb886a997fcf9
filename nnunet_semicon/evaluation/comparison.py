"""What is compared, and what a comparison holds: runs and methods, means, paired differences."""

from collections.abc import Mapping
from dataclasses import dataclass

MEAN = "mean"  # of the classes

Values = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class Run:
    """One training, evaluated.

    Attributes:
        name: of its model folder, prediction folder or file.
        path: where it was read, for messages.
        values: case -> class -> metric -> value; NaN where it is missing. A class is nnU-Net's key of a label
            (``"1"``) or region (``"(1, 2)"``).
        folds: case -> fold; empty where the run has no folds.
        class_names: class -> name.
    """

    name: str
    path: str
    values: Values
    folds: Mapping[str, str]
    class_names: Mapping[str, str]


@dataclass(frozen=True)
class Method:
    """Runs that differ in the seed alone, at least one, under the name that tables show."""

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Mean:
    """One metric of one class of one method.

    Attributes:
        label: class, or ``"mean"`` of the classes.
        mean: of the seeds' means over the cases; None if a seed has no value at all.
        over_seeds: standard deviation of the seeds' means; None with one seed.
        over_folds: the same of the folds' means, each averaged over the seeds; None with fewer than two folds.
        cases: number of all cases.
        missing: those without a value in one of the seeds.
    """

    method: str
    label: str
    metric: str
    mean: float | None
    over_seeds: float | None
    over_folds: float | None
    cases: int
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """One metric of one class: a method minus the baseline, paired by case.

    Attributes:
        label: class, or ``"mean"`` of the classes that both have in a case.
        difference: mean over the pairs, in the metric's unit; None without a pair, as are the next four.
        low: lower end of the bootstrap interval.
        high: upper end.
        p: of the signed-rank test.
        p_holm: corrected for all tests of the comparison.
        better: number of cases in which the method is better than the baseline.
        equal: in which both are the same.
        worse: in which it is worse.
        left_out: cases that are missing in one of the two.
        spread: the larger standard deviation over the seeds of the two; None if one of them has a single seed.
    """

    method: str
    label: str
    metric: str
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    better: int
    equal: int
    worse: int
    left_out: tuple[str, ...]
    spread: float | None

    @property
    def cases(self) -> int:
        """Number of pairs."""
        return self.better + self.equal + self.worse

    @property
    def inside_spread(self) -> bool | None:
        """Whether seeds alone differ as much; None if that is unknown."""
        return None if self.spread is None or self.difference is None else abs(self.difference) <= self.spread

    @property
    def effect(self) -> str:
        """Say in plain words what the difference amounts to."""
        if self.difference is None:
            return "no case has both"
        text = f"better in {self.better} of {self.cases} cases"
        text += f", equal in {self.equal}" if self.equal else ""
        spread = {True: "inside the seeds' spread", False: "outside the seeds' spread", None: "seeds' spread unknown"}
        return f"{text}; {spread[self.inside_spread]}"


@dataclass(frozen=True)
class Comparison:
    """Everything that the tables show; methods in the order given, the baseline first.

    Attributes:
        class_names: class -> name, in the order of the labels; ``"mean"`` last if there are several classes.
        differences: none of the baseline.
        notes: sentences on what is missing, left out or too little.
    """

    methods: tuple[Method, ...]
    metrics: tuple[str, ...]
    cases: tuple[str, ...]
    class_names: Mapping[str, str]
    means: tuple[Mean, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    @property
    def baseline(self) -> str:
        """Name of the method that all others are compared with."""
        return self.methods[0].name
