"""A logged number that runs are compared by, and what to call it."""

import re
from dataclasses import dataclass
from typing import Literal

Better = Literal["max", "min"]


@dataclass(frozen=True)
class Metric:
    """The number that a comparison is about.

    Args:
        name: the tag that the module logs it under.
        title: what tables and figures call it; by default its name in words.
        better: whether more is better, ``"max"``, or less, ``"min"``.
        report: which of a run's values a paper's number stands for, the best or the last.
        over_seeds: whether that number is the mean over the seeds or the best of them.
        percent: whether it is logged as a fraction and shown in percent. By default it is if its
            name ends with "accuracy".
    """

    name: str = "val_accuracy"
    title: str | None = None
    better: Better = "max"
    report: Literal["best", "last"] = "best"
    over_seeds: Literal["mean", "best"] = "mean"
    percent: bool | None = None

    @property
    def label(self) -> str:
        """What it is called."""
        return self.title or re.sub("^val_", "validation_", self.name).replace("_", " ")

    @property
    def in_percent(self) -> bool:
        """Whether it is shown in percent."""
        return self.name.endswith("accuracy") if self.percent is None else self.percent
