"""What the scripts that prepare a corpus have in common.

Each ``*_prepare.py`` makes the same three moves:

1. ``is_prepared``: is there a manifest made for these very settings?
2. the recipe turns its folder into ``Utterance`` rows, split three ways, and
   the dialogues they are from into ``Turn`` rows, where those have others too;
3. ``write_manifests`` checks the rows and writes them.

``main`` makes a program of a prepare function.
"""

import argparse
import inspect
import logging
import sys
from typing import Literal, get_args, get_origin

from emoq_modules.dataio.manifest import (  # noqa: F401 for prepare scripts
    COLUMNS,
    SPLITS,
    Turn,
    Utterance,
    is_prepared,
    name_few,
    write_manifests,
)
from emoq_modules.dataio.manifest_reader import (  # noqa: F401
    read_dialogues,
    read_manifest,
)
from emoq_modules.dataio.splits import split_by_dialogue  # noqa: F401
from emoq_modules.errors import CorpusError, EmoQError


def check_choice(name, value, allowed):
    """Check that a setting has one of the values it can have.

    Arguments
    ---------
    name : str
        The setting, for the message.
    value : object
        Its value.
    allowed : Sequence
        The values it can have.

    Raises
    ------
    CorpusError
        The value is none of these.

    Example
    -------
    >>> check_choice("fold", 4, range(1, 4))
    Traceback (most recent call last):
    emoq_modules.errors.CorpusError: fold is 4; it must be one of 1, 2, 3.
    """
    if value not in allowed:
        raise CorpusError(
            f"{name} is {value!r}; it must be one of "
            f"{', '.join(map(str, allowed))}."
        )


def rooted(path, data_root):
    """Write a path as it stands in a manifest, with ``{data_root}``.

    Arguments
    ---------
    path : Path
        A file in the folder, or in one below it.
    data_root : Path
        The folder that ``{data_root}`` stands for.

    Returns
    -------
    str
        The value for the column ``wav``.

    Raises
    ------
    ValueError
        The file is not below the folder.

    Example
    -------
    >>> from pathlib import Path
    >>> rooted(Path("/data/EMODB/wav/03a01Fa.wav"), Path("/data/EMODB"))
    '{data_root}/wav/03a01Fa.wav'
    """
    return "{data_root}/" + path.relative_to(data_root).as_posix()


def main(prepare, argv=None):
    """Run a prepare function as a program.

    The two folders are positions, every further argument of the function an
    option of the same name; the help is the function's docstring.

    Arguments
    ---------
    prepare : callable
        ``prepare(data_folder, save_folder, ...)``, with annotations.
    argv : Sequence[str], optional
        Arguments to use in place of the program's.

    Returns
    -------
    int
        Exit status: 0, or 2 after an error message for the person.
    """
    parser = argparse.ArgumentParser(
        description=inspect.getdoc(prepare),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    signature = inspect.signature(prepare, eval_str=True)
    for name, parameter in signature.parameters.items():
        if parameter.default is parameter.empty:
            parser.add_argument(name)
        else:
            parser.add_argument(f"--{name}", **_option(parameter))
    arguments = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        prepare(**arguments)
    except (EmoQError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _option(parameter):
    """The ``add_argument`` keywords for a parameter with a default."""
    kind, default = parameter.annotation, parameter.default
    if kind is bool:
        return {"action": "store_true"}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind), "default": default}
    if get_origin(kind) is tuple:
        return {"nargs": "+", "default": default, "metavar": "WORD"}
    if get_args(kind):  # `int | None`
        kind = get_args(kind)[0]
    return {"type": kind, "default": default}
