"""The manifest: one row an utterance, the same columns for every corpus.

``write_manifests`` writes ``train.json``, ``valid.json``, ``test.json``,
``dialogues.json`` and, last, ``manifest_settings.json``; ``is_prepared`` says
whether they were made for these very settings; manifest_reader.py reads them.
Paths hold ``{data_root}``, so that a manifest survives a move of the data.

The manifests hold the utterances to recognize; the dialogues hold every turn,
those of other classes and those without audio too: all of them were said.
"""

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from emoq_modules.dataio.files import remove_abandoned, write_atomically
from emoq_modules.errors import CorpusError

logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
DIALOGUES_FILE = "dialogues.json"
MANIFEST_SETTINGS_FILE = "manifest_settings.json"
# Raise it when the manifests' meaning changes, so that old ones are re-made.
_FORMAT = 2
_SHOWN = 5


@dataclass(slots=True)
class Utterance(Mapping):
    """One row of a manifest, from the prepare script to the batch.

    It is what SpeechBrain's ``DynamicItemDataset`` takes as a data point: a
    mapping of its columns, without the ``id``, which is the row's key.

    Arguments
    ---------
    id : str
        Unique over all three splits.
    wav : str
        Path of the audio; may start with ``{data_root}/``.
    duration : float
        Seconds.
    speaker : str
        Who speaks, unique in the corpus.
    session : str
        The recording session, or what the corpus has in its place.
    dialogue : str
        The conversation the utterance belongs to, unique in the corpus.
    turn : int
        Place in the dialogue; only the order means something.
    text : str
        Transcript; may be empty.
    emotion : str
        The emotion word to predict.
    corpus : str
        Which of several corpora that train together it is of; empty of one.

    Example
    -------
    >>> row = Utterance("a1", "a1.wav", 1.5, "a", "s", "d", 0, "Oh.", "happy")
    >>> {"id": row.id, **row}["emotion"]
    'happy'
    """

    id: str
    wav: str
    duration: float
    speaker: str
    session: str
    dialogue: str
    turn: int
    text: str
    emotion: str
    corpus: str = ""

    def __iter__(self):
        return iter(COLUMNS[1:])

    def __len__(self):
        return len(COLUMNS) - 1

    def __getitem__(self, column):
        if column not in COLUMNS:
            raise KeyError(column)
        return getattr(self, column)

    def __setitem__(self, column, value):
        # SpeechBrain's filtered_sorted sets the id.
        setattr(self, column, value)


COLUMNS = tuple(field.name for field in fields(Utterance))


class Turn(NamedTuple):
    """One turn of a dialogue.

    Arguments
    ---------
    turn : int
        Place in the dialogue; only the order means something.
    speaker : str
        Who speaks.
    text : str
        Transcript; may be empty.
    """

    turn: int
    speaker: str
    text: str


def write_manifests(
    save_folder,
    splits,
    labels,
    settings,
    skipped=None,
    dialogues=None,
    notes=(),
):
    """Check the rows, write manifests and dialogues, and log a summary.

    Each file replaces its predecessor in one step, and the settings are
    written last: a run stopped half-way leaves nothing that passes for done.

    Arguments
    ---------
    save_folder : str or Path
        Where the files go.
    splits : dict[str, Sequence[Utterance]]
        Rows under ``"train"``, ``"valid"`` and ``"test"``.
    labels : Sequence[str]
        The emotion words, in the order of the posteriors.
    settings : dict
        Plain values that determine the manifests: corpus, source, fold,
        labels, ... ``is_prepared`` compares them.
    skipped : dict[str, Sequence[str]], optional
        Reason -> the ids left out for it; for the summary.
    dialogues : dict[str, Sequence[Turn]], optional
        Every annotated turn of each dialogue, in any order, whether it is a
        row or was left out. Unless given, the turns are those of the rows:
        right where no dialogue has others.
    notes : Sequence[str]
        What must be known of results on these manifests, for ``read_notes``;
        logged as warnings.

    Raises
    ------
    CorpusError
        An unknown label, a repeated id, a duration that is not above zero,
        an empty split, or a dialogue that has a turn twice, or lacks the turn
        of a row. Nothing has been written then.

    Example
    -------
    >>> from dataclasses import replace
    >>> from tempfile import TemporaryDirectory
    >>> row = Utterance("a1", "a1.wav", 1.5, "a", "s", "d", 0, "Oh.", "happy")
    >>> splits = {
    ...     "train": [row],
    ...     "valid": [replace(row, id="a2", dialogue="e")],
    ...     "test": [replace(row, id="a3", dialogue="f")],
    ... }
    >>> with TemporaryDirectory() as folder:
    ...     write_manifests(folder, splits, ["happy", "sad"], {"fold": 1})
    ...     is_prepared(folder, {"fold": 1}), is_prepared(folder, {"fold": 2})
    (True, False)
    """
    if dialogues is None:
        dialogues = defaultdict(list)
        for row in chain(*splits.values()):
            turn = Turn(row.turn, row.speaker, row.text)
            dialogues[row.dialogue].append(turn)
    _check_rows(save_folder, splits, labels, dialogues)
    save_folder = Path(save_folder)
    save_folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(save_folder, ".*.partial")
    files = {}
    for split in SPLITS:
        rows = sorted(splits[split], key=lambda r: (r.dialogue, r.turn, r.id))
        files[f"{split}.json"] = _to_json({row.id: dict(row) for row in rows})
    files[DIALOGUES_FILE] = _to_json(
        {name: sorted(dialogues[name]) for name in sorted(dialogues)}
    )
    for name, content in files.items():
        write_atomically(save_folder / name, content)
    digests = {name: digest_of_file(save_folder / name) for name in files}
    record = {"format": _FORMAT, "settings": settings, "digests": digests}
    record["notes"] = list(notes)
    write_atomically(save_folder / MANIFEST_SETTINGS_FILE, _to_json(record))
    logger.info(_summary(save_folder, splits, labels, skipped or {}))
    for note in notes:
        logger.warning(note)
    learned = {row.emotion for row in splits["train"]}
    for label in labels:
        if label not in learned:
            logger.warning(f"There is no training utterance for '{label}'.")


def read_notes(save_folder):
    """Reads what must be known of results on some manifests.

    Arguments
    ---------
    save_folder : str or Path
        Where ``write_manifests`` has written.

    Returns
    -------
    list[str]
        Its ``notes``; none of those that an earlier version wrote.
    """
    file = Path(save_folder, MANIFEST_SETTINGS_FILE)
    if not file.exists():
        return []
    return json.loads(file.read_bytes()).get("notes", [])


def is_prepared(save_folder, settings):
    """Tells whether manifests were made for these settings, and are unchanged.

    Arguments
    ---------
    save_folder : str or Path
        Where ``write_manifests`` has written, or would write.
    settings : dict
        The settings wanted now.

    Returns
    -------
    bool
        False, with a log line that says why, if anything differs: settings,
        the format of the manifests, or the content of one of the files.
    """
    save_folder = Path(save_folder)
    if not (save_folder / MANIFEST_SETTINGS_FILE).is_file():
        return False
    why = _why_stale(save_folder, json.loads(_to_json(settings)))
    if why:
        logger.info(f"Making the manifests in {save_folder} again: {why}.")
    else:
        logger.info(f"The manifests in {save_folder} are up to date.")
    return not why


def name_few(ids):
    """Counts ids and names the first few, for a message.

    Arguments
    ---------
    ids : Sequence[str]
        The ids.

    Returns
    -------
    str
        How many, and up to five of them in brackets.

    Example
    -------
    >>> name_few(["a1", "a2", "a3", "a4", "a5", "a6", "a7"])
    '7 (a1, a2, a3, a4, a5, ...)'
    """
    dots = ["..."] if len(ids) > _SHOWN else []
    return f"{len(ids)} ({', '.join([*ids[:_SHOWN], *dots])})"


def list_faults(problems):
    """The end of an error message: how many problems, and the first few."""
    lines = [f"  {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  and {len(problems) - _SHOWN} more")
    return f"faults: {len(problems)}\n" + "\n".join(lines)


def digest_of_file(path):
    """Computes the digest by which it is known if a manifest has changed.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    str
        SHA-256 of its bytes, 64 hexadecimal digits.

    Raises
    ------
    OSError
        If the file is missing or cannot be read.
    """
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _why_stale(save_folder, wanted):
    """Why manifests cannot be used for the wanted settings, or None."""
    try:
        record = json.loads((save_folder / MANIFEST_SETTINGS_FILE).read_bytes())
        version, stored = record["format"], record["settings"]
        digests = record["digests"]
    except (ValueError, TypeError, KeyError):
        return f"{MANIFEST_SETTINGS_FILE} is damaged"
    if version != _FORMAT:
        return f"their format is {version}, now it is {_FORMAT}"
    changes = [
        f"{key} was {stored.get(key)!r}, is {wanted.get(key)!r}"
        for key in sorted(stored.keys() | wanted.keys())
        if stored.get(key) != wanted.get(key)
    ]
    if changes:
        return f"they were made for other settings ({'; '.join(changes)})"
    for name in (*(f"{split}.json" for split in SPLITS), DIALOGUES_FILE):
        path = save_folder / name
        if not path.is_file() or digest_of_file(path) != digests[name]:
            return f"{name} is not what was written"
    return None


def _check_rows(save_folder, splits, labels, dialogues):
    problems, seen, places = [], set(), set()
    for name, turns in dialogues.items():
        for turn in turns:
            if (name, turn.turn) in places:
                problems.append(
                    f"dialogue '{name}' has turn {turn.turn} more than once"
                )
            places.add((name, turn.turn))
    for split in SPLITS:
        rows = splits[split]
        if not rows:
            problems.append(f"the {split} split has no utterances")
        for row in rows:
            if row.emotion not in labels:
                problems.append(
                    f"'{row.id}' has the label '{row.emotion}', not one of "
                    f"{', '.join(labels)}"
                )
            if row.id in seen:
                problems.append(f"'{row.id}' occurs more than once")
            seen.add(row.id)
            if not row.duration > 0:
                problems.append(f"'{row.id}' lasts {row.duration} s")
            if (row.dialogue, row.turn) not in places:
                problems.append(
                    f"'{row.id}' is turn {row.turn} of dialogue "
                    f"'{row.dialogue}', which has no such turn"
                )
    if problems:
        raise CorpusError(
            f"No manifests written to {save_folder}, {list_faults(problems)}"
        )


def _to_json(value):
    text = json.dumps(value, ensure_ascii=False, indent=1, default=str)
    return (text + "\n").encode()


def _summary(save_folder, splits, labels, skipped):
    """The table of counts by split and class, and what was left out."""
    table = [["", *labels, "total"]]
    for split in SPLITS:
        counts = Counter(row.emotion for row in splits[split])
        numbers = [counts[label] for label in labels]
        table.append([split, *map(str, numbers), str(counts.total())])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [f"Manifests in {save_folder}:"]
    for row in table:
        cells = [cell.rjust(w) for cell, w in zip(row, widths, strict=True)]
        lines.append("  ".join(cells))
    for reason, ids in skipped.items():
        if ids:
            lines.append(f"left out, {reason}: {name_few(ids)}")
    return "\n".join(lines)
