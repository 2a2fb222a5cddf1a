"""The recipes of docs/reuse.md: each a diff, and a run to try it with."""

import re
import subprocess
from dataclasses import dataclass, replace

from upstream.imports import MoveError

_EXAMPLE = re.compile(
    r"^## (?P<title>.+?)$.*?^```diff\n(?P<diff>.*?)^```$.*?"
    r"^    python (?P<script>\S+) (?P<yaml>\S+) ",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Example:
    """A change of a recipe.

    Arguments
    ---------
    title : str
        What it is about.
    diff : str
        What ``git apply`` takes.
    script, yaml : str
        What is to be run, in the recipe's folder.
    """

    title: str
    diff: str
    script: str
    yaml: str

    def python_lines(self):
        """How many lines of Python it adds."""
        count, file = 0, ""
        for line in self.diff.splitlines():
            if line.startswith("+++ "):
                file = line
            elif line.startswith("+") and file.endswith(".py"):
                count += 1
        return count

    def renamed(self, names):
        """The same with the names that the lobes have upstream."""
        diff = names.mentions().sub(lambda m: names.new(m[0]), self.diff)
        return replace(self, diff=diff)

    def apply(self, folder):
        """Lays the diff over a copy of the recipe.

        Arguments
        ---------
        folder : Path
            What the diff's paths are relative to.

        Raises
        ------
        MoveError
            If the recipe is not what the diff was made for.
        """
        done = subprocess.run(
            ["git", "apply", "-"],
            cwd=folder,
            input=self.diff,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise MoveError(
                f"docs/reuse.md, {self.title!r}: {done.stderr.strip()}"
            )


def examples(document):
    """The examples of a Markdown document, in their order."""
    return [
        Example(**found.groupdict()) for found in _EXAMPLE.finditer(document)
    ]


def losses(train_log):
    """The training losses of a ``train_log.txt``, epoch by epoch."""
    found = re.findall(r"train loss: ([^\s,]+)", train_log)
    return [float(loss) for loss in found]
