"""What the scripts that prepare a corpus have in common.

Each ``*_prepare.py`` makes the same three moves:

1. ``is_prepared``: is there a manifest made for these very settings?
2. the recipe turns its folder into ``Utterance`` rows, split three ways, and
   the dialogues they are from into ``Turn`` rows, where those have others too;
3. ``write_manifests`` checks the rows and writes them.

``main`` makes a program of a prepare function.
"""

import argparse
import hashlib
import inspect
import logging
import sys
from collections import Counter
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
from emoq_modules.errors import CorpusError, EmoQError


def split_by_dialogue(utterances, fraction, seed, groups=None):
    """Takes whole dialogues out of a set, chosen by a seeded hash.

    The choice depends on the dialogues' names and the seed alone, not on the
    order of the rows nor on the machine.

    Arguments
    ---------
    utterances : Sequence[Utterance]
        At least two dialogues.
    fraction : float
        Share of the utterances to take, in (0, 1); the nearest that whole
        dialogues in the order of the hash allow, one dialogue at the least.
    seed : int
        Another seed, another choice.
    groups : dict[str, str], optional
        What each utterance stays together with, by its id, in the place of its
        dialogue.

    Returns
    -------
    tuple[list[Utterance], list[Utterance]]
        The rest and the chosen, with no dialogue in both.

    Raises
    ------
    CorpusError
        Fewer than two dialogues, or a fraction outside (0, 1).

    Example
    -------
    >>> rows = [
    ...     Utterance(f"{d}{t}", "", 1.0, "a", "s", d, t, "", "sad")
    ...     for d in "pqrstuvwxy"
    ...     for t in range(3)
    ... ]
    >>> rest, chosen = split_by_dialogue(rows, 0.1, seed=1234)
    >>> len(rest), len(chosen), len({row.dialogue for row in chosen})
    (27, 3, 1)
    """
    if not 0 < fraction < 1:
        raise CorpusError(
            f"The validation fraction is {fraction}, not between 0 and 1."
        )
    if groups is None:
        groups = {row.id: row.dialogue for row in utterances}
    sizes = Counter(groups[row.id] for row in utterances)
    if len(sizes) < 2:
        raise CorpusError(
            f"There are {len(sizes)} dialogues; training and validation need "
            "at least two. Is the corpus complete?"
        )
    order = sorted(
        sizes, key=lambda d: hashlib.blake2b(f"{seed}/{d}".encode()).digest()
    )
    target, taken, counts = fraction * len(utterances), 0, []
    for dialogue in order[:-1]:
        taken += sizes[dialogue]
        counts.append(taken)
    best = min(range(len(counts)), key=lambda i: abs(counts[i] - target))
    chosen = set(order[: best + 1])
    return (
        [row for row in utterances if groups[row.id] not in chosen],
        [row for row in utterances if groups[row.id] in chosen],
    )


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
