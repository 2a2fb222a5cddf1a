"""Training, validation and test: which utterances go where.

What belongs together stays together: a speaker, a dialogue, a session or a
recording is never on two sides.
"""

import hashlib
import warnings
from collections import Counter, defaultdict

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from emoq_modules.dataio.manifest import name_few
from emoq_modules.errors import CorpusError

# What a split may be called in a table.
SPLITS = {
    "train": "train training",
    "valid": "valid validation val dev development",
    "test": "test testing eval evaluation",
}


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
    >>> from emoq_modules.dataio.manifest import Utterance
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


def check_rest(utterances, groups, validate_on, finer):
    """Whether there is something to train on, and to validate on beside it.

    ``finer`` are the groups that ``--validate_on dialogues`` would have.
    """
    found = {groups[said.id] for said in utterances}
    if len(found) < 2:
        advice = "mark some rows as valid in a column of splits"
        if len({finer[said.id] for said in utterances}) > 1:
            advice = "give --validate_on dialogues"
        raise CorpusError(
            f"What is not tested, {len(utterances)} utterances, is of "
            f"{len(found)} of the {validate_on} that share no speaker, "
            "dialogue, session or recording: one has to train, and another to "
            f"validate: {advice}."
        )


def find_groups(rows, kinds=("speaker", "dialogue", "session", "recording")):
    """By the id of each row, the name of the group that it hangs together with.

    Rows of one speaker, dialogue, session or recording do, and rows of two that
    share a third.
    """
    places, edges = {}, []
    for number, row in enumerate(rows):
        said = row.utterance
        shared = {
            "speaker": said.speaker,
            "dialogue": said.dialogue,
            "session": said.session,
            "recording": row.recording,
        }
        for key in shared.items():
            if key[0] in kinds and key[1]:
                edges.append((number, places.setdefault(key, len(places))))
    first, second = np.array(edges).T
    size = len(rows) + len(places)
    graph = coo_array(
        (np.ones(len(edges)), (first, len(rows) + second)), (size, size)
    )
    _, found = connected_components(graph, directed=False)
    names = {}
    for number, row in enumerate(rows):
        said = row.utterance
        name = said.dialogue
        if "speaker" in kinds:
            name = said.session or said.speaker or name
        names[found[number]] = min(name, names.get(found[number], name))
    return {row.utterance.id: names[found[n]] for n, row in enumerate(rows)}


def draw_fold(rows, groups, fold, folds, seed, notes):
    """What a fold tests, and the rest to train."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    utterances = [row.utterance for row in rows]
    of = np.array([groups[said.id] for said in utterances])
    names = sorted(set(of))
    if folds < 2:
        raise CorpusError(
            f"folds is {folds}, and the table has no splits of its own: 2 or "
            "more are needed."
        )
    if len(names) < folds:
        raise CorpusError(
            f"{folds} folds need as many groups that share no speaker, "
            f"dialogue, session or recording, and the table has {len(names)}: "
            + _advice(rows, len(names))
        )
    told = [bool(said.speaker or said.session) for said in utterances]
    if any(told) and not all(told):
        notes.append(
            f"{told.count(False)} of {len(rows)} rows name no speaker: a voice "
            "may be in training and in test."
        )
    if not any(told):
        notes.append(
            "The table names no speakers: a voice may be in training and in "
            "test, and figures are too good then."
        )
    if len(names) == folds:
        tested = of == names[fold - 1]
    else:
        labels = [said.emotion for said in utterances]
        most = max(Counter(labels).values())
        if most < folds:
            raise CorpusError(
                f"The commonest label has {most} utterances: take {most} "
                "--folds or fewer."
            )
        # Of single rows the other would do the same, and take minutes.
        single = len(names) == len(of)
        kind = StratifiedKFold if single else StratifiedGroupKFold
        splitter = kind(folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            # Of labels that are rarer than folds, which are as wished.
            warnings.simplefilter("ignore", UserWarning)
            drawn = list(splitter.split(of, labels, None if single else of))
        chosen = drawn[fold - 1][1]
        tested = np.isin(np.arange(len(of)), chosen)
    return {
        "train": [utterances[n] for n in np.flatnonzero(~tested)],
        "valid": [],
        "test": [utterances[n] for n in np.flatnonzero(tested)],
    }


def _advice(rows, groups):
    """How there may be as many groups as folds."""
    if len({row.recording for row in rows}) == 1:
        return "all rows are of one recording: cut it into files."
    found = {
        "speaker": any(row.utterance.speaker for row in rows),
        "session": any(row.utterance.session for row in rows),
        "dialogue": any(
            row.utterance.dialogue != row.utterance.id for row in rows
        ),
    }
    columns = [f"--columns {name}=" for name in found if found[name]]
    advice = ["take fewer --folds"] * (groups > 1)
    if columns:
        advice.append(f"have a column not looked at ({', '.join(columns)})")
    return f"{', or '.join(advice) or 'it takes more recordings'}."


def own_splits(rows, notes):
    """The splits that a column of the table names."""
    known = {word: name for name, of in SPLITS.items() for word in of.split()}
    splits, where = {name: [] for name in SPLITS}, defaultdict(set)
    strange = dict.fromkeys(
        repr(row.split) for row in rows if row.split.casefold() not in known
    )
    if strange:
        raise CorpusError(
            f"The table has splits that mean nothing here, "
            f"{name_few(list(strange))}: they can be {', '.join(known)}; "
            "--columns split= does not look at them."
        )
    for row in rows:
        name = known[row.split.casefold()]
        splits[name].append(row.utterance)
        where["recording", str(row.recording)].add(name)
        where["dialogue", row.utterance.dialogue].add(name)
        where["speaker", row.utterance.speaker].add(name)
    for kind in ("recording", "dialogue", "speaker"):
        torn = [
            name
            for (of, name), in_ in where.items()
            if of == kind and name and len(in_) > 1
        ]
        if torn and kind == "speaker":
            notes.append(
                f"Speakers in several splits of the table: {name_few(torn)}. "
                "Their figures are not those of voices that are new."
            )
        elif torn:
            raise CorpusError(
                f"The table has a {kind} in several splits, {name_few(torn)}: "
                "give each to one, or leave the column out by --columns split="
            )
    return splits
