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
    goal: float | None
    met: bool | None

    @property
    def summary(self):
        """The row in a line.

        Example
        -------
        >>> at_most("start-up", 2.5, "s", limit=10).summary
        'start-up: 2.5 s'
        """
        if self.ratio is None:
            return f"{self.name}: {self.ours:.3g} {self.unit}"
        return f"{self.name}: {_short(self.ratio)} times"


def compare(name, ours, reference, repetitions, goal=None, parts=1):
    """Times two functions by turns.

    Arguments
    ---------
    name : str
        What is compared.
    ours : callable
        Takes nothing; so does the next.
    reference : callable
        What does the same work.
    repetitions : int
        How often each is timed, after one time that does not count.
    goal : float | None
        The ratio that is wanted.
    parts : int
        Pieces of work that a call does, of which one is to be reported.

    Returns
    -------
    Row
        In seconds.

    Example
    -------
    >>> row = compare(
    ...     "a nap", lambda: None, lambda: time.sleep(0.01), 3, goal=2
    ... )
    >>> row.unit, row.met
    ('s', True)
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
    """A figure beside another of the same unit.

    Arguments
    ---------
    name : str
        What was measured.
    ours : float
        The figure.
    reference : float
        What it is compared with.
    unit : str
        Their unit.
    goal : float | None
        The ratio that is wanted.
    ratio : float | None
        What to compare the goal with; None is ``ours / reference``.

    Returns
    -------
    Row

    Example
    -------
    >>> share("of the peak", 300.0, 600.0, "TFLOP/s", goal=0.5).met
    True
    """
    ratio = ours / reference if ratio is None else ratio
    met = None if goal is None else ratio >= goal
    return Row(name, ours, reference, unit, ratio, goal, met)


def at_most(name, value, unit, limit=None):
    """A figure that stands for itself.

    Arguments
    ---------
    name : str
        What was measured.
    value : float
        The figure.
    unit : str
        Its unit.
    limit : float | None
        What it should not be above.

    Returns
    -------
    Row
    """
    met = None if limit is None else value <= limit
    return Row(name, value, None, unit, None, limit, met)


def format_table(rows):
    """The rows in Markdown.

    Example
    -------
    >>> step = Row("step", 0.5, 2.0, "s", ratio=4.0, goal=3.0, met=True)
    >>> print(format_table([step, at_most("start-up", 12.0, "s", limit=10)]))
    | name | ours | reference | unit | ratio | goal | met |
    | :-- | --: | --: | --: | --: | --: | --: |
    | step | 0.5 | 2 | s | 4.0 | ≥ 3 | yes |
    | start-up | 12 |  | s |  | ≤ 10 s | no |
    """
    lines = [
        f"| {' | '.join(_COLUMNS)} |",
        f"| :-- |{' --: |' * (len(_COLUMNS) - 1)}",
    ]
    return "\n".join([*lines, *map(_line, rows)])


def _short(ratio):
    return f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2f}"


def _line(row):
    reference = ratio = goal = met = ""
    if row.reference is not None:
        reference, ratio = f"{row.reference:.3g}", _short(row.ratio)
    if row.goal is not None:
        met = "yes" if row.met else "no"
        goal = f"≥ {row.goal:.3g}"
        if row.ratio is None:
            goal = f"≤ {row.goal:.3g} {row.unit}"
    cells = [row.name, f"{row.ours:.3g}", reference, row.unit, ratio, goal, met]
    return f"| {' | '.join(cells)} |"
