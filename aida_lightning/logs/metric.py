"""The logged number by which runs are compared, and its title."""

import re
from dataclasses import dataclass
from typing import Literal

Better = Literal["max", "min"]


@dataclass(frozen=True)
class Metric:
    """The number by which a comparison judges its runs.

    Args:
        name: tag under which the module logs the number.
        title: title of the number in tables and figures; by default, its name in words.
        better: ``"max"`` if higher is better, or ``"min"`` if lower is better.
        report: value of a run that corresponds to a paper's number, the best or the last.
        over_seeds: whether a paper's number is the mean over the seeds or the best of them.
        percent: whether the number is logged as a fraction and shown in percent; by default, this
            is so if its name ends with "accuracy".
    """

    name: str = "val_accuracy"
    title: str | None = None
    better: Better = "max"
    report: Literal["best", "last"] = "best"
    over_seeds: Literal["mean", "best"] = "mean"
    percent: bool | None = None

    @property
    def label(self) -> str:
        """The title in tables and figures."""
        return self.title or re.sub("^val_", "validation_", self.name).replace("_", " ")

    @property
    def in_percent(self) -> bool:
        """Whether the number is shown in percent."""
        return self.name.endswith("accuracy") if self.percent is None else self.percent
