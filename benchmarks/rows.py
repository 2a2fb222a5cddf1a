"""Rows of the bench: what was measured, and whether it meets its goal."""

import statistics
import time
from dataclasses import dataclass

from benchmarks.machine import synchronize

_COLUMNS = ("name", "ours", "reference", "unit", "ratio", "goal", "met")


@dataclass(frozen=True)
class Row:
    """One thing that was measured.

    A comparison has a reference, and its ``goal`` is the lowest ``ratio`` that
    will do; the higher, the better is ``ours``. A figure that stands for itself
    has neither reference nor ratio, and its goal is the highest value of
    ``ours``, in ``unit``.
    """

    name: str
    ours: float
    reference: float | None
    unit: str
    ratio: float | None
    goal: float | None = None
    met: bool | None = None

    @property
    def summary(self):
        """The row in a line.

        >>> at_most("start-up", 2.5, "s", limit=10).summary
        'start-up: 2.5 s'
        """
        if self.ratio is None:
            return f"{self.name}: {self.ours:.3g} {self.unit}"
        return f"{self.name}: {_short(self.ratio)} times"


def compare(name, ours, reference, repetitions, goal=None, parts=1):
    """A row in seconds, of two functions that are timed by turns.

    Each is timed as often as ``repetitions`` says, after one time that does
    not count. A call does ``parts`` pieces of work, of which one is reported;
    the ``goal`` is the ratio that is wanted.
    """
    times = [], []
    for _ in range(1 + repetitions):
        for function, taken in zip((ours, reference), times, strict=True):
            started = time.perf_counter()
            function()
            synchronize()
            taken.append((time.perf_counter() - started) / parts)
    # The first run of each warms up.
    ours_s, reference_s = (statistics.median(taken[1:]) for taken in times)
    return share(
        name, ours_s, reference_s, "s", goal, ratio=reference_s / ours_s
    )


def share(name, ours, reference, unit, goal=None, ratio=None):
    """A row of a figure beside another; the ratio is ours to the other's."""
    ratio = ours / reference if ratio is None else ratio
    met = None if goal is None else ratio >= goal
    return Row(name, ours, reference, unit, ratio, goal, met)


def smaller(name, ours, reference, unit):
    """A row of a figure that is better the smaller it is."""
    return share(name, ours, reference, unit, ratio=reference / ours)


def at_most(name, value, unit, limit=None):
    """A row of a figure that stands for itself, and should be below a limit."""
    met = None if limit is None else value <= limit
    return Row(name, value, None, unit, None, limit, met)


def format_table(rows):
    """The rows in Markdown.

    >>> step = Row("step", 0.5, 2.0, "s", ratio=4.0, goal=3.0, met=True)
    >>> print(format_table([step, at_most("start-up", 12.0, "s", limit=10)]))
    | name | ours | reference | unit | ratio | goal | met |
    | :-- | --: | --: | --: | --: | --: | --: |
    | step | 0.5 | 2 | s | 4.0 | ≥ 3 | yes |
    | start-up | 12 |  | s |  | ≤ 10 s | no |
    """
    return markdown(_COLUMNS, map(_cells, rows), first=":--")


def markdown(header, rows, first="--:"):
    """A table in Markdown, of cells that are text."""
    lines = [header, [first, *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _short(ratio):
    return f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2f}"


def _cells(row):
    reference = ratio = goal = met = ""
    if row.reference is not None:
        reference, ratio = f"{row.reference:.3g}", _short(row.ratio)
    if row.goal is not None:
        met = "yes" if row.met else "no"
        goal = f"≥ {row.goal:g}"
        if row.ratio is None:
            goal = f"≤ {row.goal:g} {row.unit}"
    return row.name, f"{row.ours:.3g}", reference, row.unit, ratio, goal, met
