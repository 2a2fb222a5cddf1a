"""A patch of upstream's own files, kept as a diff without their context.

It fits only the very files that it was made from, which the diff names.
"""

import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from upstream.imports import MoveError

_FILE = re.compile(
    r"^diff --git a/(?P<path>\S+) b/(?P=path)\n"
    r"index (?P<blob>[0-9a-f]{40})\.\.",
    re.MULTILINE,
)


def patched(checkout, patch):
    """Upstream's files with a patch laid over them.

    Arguments
    ---------
    checkout : Checkout
        What upstream has.
    patch : Path
        What ``git diff -U0 --full-index`` prints.

    Returns
    -------
    dict
        Text by path.

    Raises
    ------
    MoveError
        If a file is another than the patch was made from.
    """
    text = patch.read_text(encoding="utf-8")
    made_from = {found["path"]: found["blob"] for found in _FILE.finditer(text)}
    if len(made_from) != text.count("diff --git "):
        raise MoveError(
            f"{patch.name} is not what git diff -U0 --full-index prints of "
            "files that stay where they are."
        )
    for path, blob in made_from.items():
        if checkout.at_base.get(path, ())[1:] != (blob,):
            raise MoveError(
                f"{path} is not the file that {patch.name} was made from: "
                "upstream has changed or moved it. See whether the patch is "
                "still needed; if so, make the changes anew in the checkout, "
                f"and put what git diff -U0 --full-index prints into {patch}."
            )
    with TemporaryDirectory() as folder:
        for path in made_from:
            place = Path(folder, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(checkout.read(path), encoding="utf-8")
        done = subprocess.run(
            ["git", "apply", "--unidiff-zero", str(patch.resolve())],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise MoveError(f"git apply {patch.name}: {done.stderr.strip()}")
        return {p: Path(folder, p).read_text("utf-8") for p in made_from}
