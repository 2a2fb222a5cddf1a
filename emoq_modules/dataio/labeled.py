"""Labeled recordings from a table: utterances, checked row by row.

What is wrong with the rows is found in one pass, and told together, before
anything is made of them.
"""

import logging
import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from emoq_modules.dataio.audio import audio_duration
from emoq_modules.dataio.manifest import (
    Turn,
    Utterance,
    list_faults,
    name_few,
)
from emoq_modules.dataio.prepare import rooted
from emoq_modules.dataio.tables import read_table
from emoq_modules.errors import AudioError, CorpusError

logger = logging.getLogger(__name__)

COLUMNS = tuple(
    "path emotion text speaker dialogue turn session split start end".split()
)
_NEEDED = ("path", "emotion")
# More words than this, and it is no column of emotions.
_MOST_LABELS = 100


@dataclass(frozen=True)
class Labeled:
    """A row of a table: an utterance, and where it is in its recording.

    ``start`` and ``end`` are seconds, or None of a whole recording. ``split``
    is the cell of that column, empty where there is none.
    """

    utterance: Utterance
    recording: Path
    start: float | None
    end: float | None
    split: str


def parse_pairs(pairs):
    """A mapping, given as one or as ``"ang=angry, exc=happy"``.

    Example
    -------
    >>> parse_pairs("ang=angry, exc = happy")
    {'ang': 'angry', 'exc': 'happy'}
    """
    if not isinstance(pairs, str):
        return dict(pairs or {})
    parts = [part for part in pairs.split(",") if part.strip()]
    split = [[x.strip() for x in part.split("=")] for part in parts]
    if any(len(pair) != 2 or not pair[0] for pair in split):
        raise CorpusError(
            f"{pairs!r} has to be like 'ang=angry, exc=happy': what the table "
            "has, and what it stands for."
        )
    return dict(split)


def count_labels(table, columns=None, label_map=None):
    """How many rows of a table each label has, the most frequent first.

    Takes a path, and mappings as of ``parse_pairs``: of what a column is to its
    name, and of a label of the table to the one that it becomes.
    """
    table = read_table(table)
    found = _find_columns(table, columns)
    label_map = parse_pairs(label_map)
    words = (row[found["emotion"]].strip() for row in table.rows)
    counts = Counter(label_map.get(word, word) for word in words if word)
    if len(counts) > _MOST_LABELS:
        raise CorpusError(
            f"The column {found['emotion']!r} of {table.path} has "
            f"{len(counts)} different values, such as "
            f"{', '.join(list(counts)[:3])}: name the emotions by "
            "--columns emotion=COLUMN."
        )
    unknown = label_map.keys() - {
        row[found["emotion"]].strip() for row in table.rows
    }
    if unknown:
        raise CorpusError(
            f"{table.path} has no label {name_few(sorted(unknown))}, which the "
            f"label_map names; it has {', '.join(counts)}."
        )
    # Equal counts in the order of the alphabet, whatever that of the rows is.
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def read_labeled(table, data_folder, labels, columns=None, label_map=None):
    """Reads the labeled recordings of a table.

    Arguments
    ---------
    table : str or Path
        As of ``read_table``.
    data_folder : str or Path
        The folder that paths in the table are relative to; they may not lead
        out of it. ``{data_root}`` in the utterances' ``wav`` stands for it.
    labels : Sequence[str]
        The classes to keep; rows of others are left out.
    columns : str | dict
        As of ``parse_pairs``, which column holds what, where it has no usual
        name; ``session=`` has a column not looked at.
    label_map : str | dict
        As of ``parse_pairs``, the label that one of the table becomes.

    Returns
    -------
    tuple[list[Labeled], dict[str, list[Turn]], dict[str, list[str]]]
        In the order of the table; the turns of each dialogue, those that are
        left out, too; and the ids of these, by reason.

    Raises
    ------
    CorpusError
        Files that are missing or outside the folder, numbers that are none,
        parts beyond the end of a recording, a recording twice: all at once.
    """
    table = read_table(table)
    found = _find_columns(table, columns)
    named = [f"{name} = {found.get(name, 'none')}" for name in COLUMNS]
    logger.info(f"Columns of {table.path}: {', '.join(named)}.")
    faults = []
    rows = [
        _Row(line, cells, found, faults)
        for line, cells in zip(table.lines, table.rows, strict=True)
    ]
    recordings = _find_recordings(rows, Path(data_folder), faults)
    label_map = parse_pairs(label_map)
    names = _name_rows(rows)
    skipped, kept, seen = defaultdict(list), [], {}
    dialogues = defaultdict(list)
    for row, name in zip(rows, names, strict=True):
        turn = Turn(row.turn, row.speaker, row.text)
        dialogues[row.dialogue or name].append(turn)
        emotion = label_map.get(row.emotion, row.emotion)
        place = row.path, row.start, row.end
        earlier = seen.setdefault(place, (row.line, emotion))
        if earlier[0] != row.line:
            how = "as" if earlier[1] == emotion else f"as {earlier[1]!r} and"
            row.fault(f"{row.path} is {how} {emotion!r} in line {earlier[0]}")
            continue
        seconds = recordings.get(row.path)
        if not emotion:
            skipped["without an emotion"].append(name)
        elif emotion not in labels:
            skipped[f"labeled '{emotion}'"].append(name)
        elif isinstance(seconds, AudioError):
            logger.warning(f"{name} is left out: {seconds}.")
            skipped["unusable audio file"].append(name)
        elif seconds is not None:
            kept.append(_labeled(row, name, emotion, seconds, data_folder))
    if faults:
        raise CorpusError(f"The table {table.path} has {list_faults(faults)}")
    return kept, dialogues, skipped


class _Row:
    """The cells of a row, its numbers read; faults go into a list."""

    def __init__(self, line, cells, columns, faults):
        self.line, self._faults = line, faults
        values = {
            name: cells[columns[name]].strip() if name in columns else ""
            for name in COLUMNS
        }
        # Tables that were made on Windows have its separator.
        self.path = values["path"].replace("\\", "/")
        self.emotion, self.text = values["emotion"], values["text"]
        self.speaker, self.dialogue = values["speaker"], values["dialogue"]
        self.session, self.split = values["session"], values["split"]
        self.start, self.end, self.turn = (
            self._number(name, values[name])
            for name in ("start", "end", "turn")
        )
        if not self.path:
            self.fault("it has no path")
        # Of a dialogue without turns they are as the table has them.
        if self.turn is None or not self.dialogue:
            self.turn = line if self.dialogue else 0
        if self.turn % 1:
            self.fault(f"turn is {values['turn']}, which is no whole number")
        self.turn = int(self.turn)
        start = self.start or 0.0
        if start < 0 or (self.end is not None and self.end <= start):
            self.fault(
                f"it is from {start:g} s to {values['end'] or 'the end'}"
            )

    def fault(self, what):
        """Notes what is wrong with the row."""
        self._faults.append(f"line {self.line}: {what}")

    def _number(self, name, cell):
        if not cell:
            return None
        try:
            value = float(cell.replace(",", "."))
        except ValueError:
            value = float("nan")
        if not abs(value) < float("inf"):
            self.fault(f"{name} is {cell!r}, which is no number")
            return None
        return value


def _find_columns(table, columns):
    given = parse_pairs(columns)
    for name in given:
        if name not in COLUMNS:
            raise CorpusError(
                f"columns names {name!r}, which is none of "
                f"{', '.join(COLUMNS)}."
            )
    wanted = [name for name in COLUMNS if given.get(name) != ""]
    found = table.find_columns(wanted, given)
    for name in _NEEDED:
        if name not in found:
            raise CorpusError(
                f"{table.path} has no column that is called as the {name} "
                f"usually is; it has {', '.join(table.columns)}. Name it by "
                f"--columns {name}=COLUMN."
            )
    return found


def _find_recordings(rows, data_folder, faults):
    """Seconds of each recording by its path, or the AudioError of it."""
    inside, found = os.path.abspath(data_folder), {}
    lines = {row.path: row for row in reversed(rows) if row.path}
    for path, row in tqdm(lines.items(), "recordings", disable=None):
        whole = os.path.abspath(data_folder / path)
        if os.path.commonpath([whole, inside]) != inside:
            row.fault(f"{path} is outside of {data_folder}")
        elif not os.path.isfile(whole):
            row.fault(f"there is no file {path} in {data_folder}")
        else:
            try:
                found[path] = audio_duration(whole)
            except AudioError as error:
                found[path] = error
    for row in rows:
        seconds = found.get(row.path)
        if isinstance(seconds, float):
            end = row.end or row.start or 0.0
            # Times are rounded, as a rule.
            if end > seconds + 0.05 or (row.start or 0.0) >= seconds:
                row.fault(
                    f"{row.path} ends at {seconds:.2f} s, before {end:g} s"
                )
    return found


def _name_rows(rows):
    """An id for each row: its file's name, as far as that is its alone."""
    stems = [Path(row.path).stem for row in rows]
    paths = {row.path for row in rows}
    if len({Path(path).stem for path in paths}) < len(paths):
        stems = [str(Path(row.path).with_suffix("")) for row in rows]
    return [
        stem
        if row.start is None and row.end is None
        else f"{stem}@{row.start or 0.0:.3f}-{row.end or 0.0:.3f}"
        for stem, row in zip(stems, rows, strict=True)
    ]


def _labeled(row, name, emotion, seconds, data_folder):
    """The utterance of a row, whose recording is of so many seconds."""
    recording = Path(os.path.abspath(Path(data_folder) / row.path))
    is_part = row.start is not None or row.end is not None
    start = row.start or 0.0
    end = min(row.end or seconds, seconds)
    utterance = Utterance(
        id=name,
        wav=rooted(recording, Path(os.path.abspath(data_folder))),
        duration=round(end - start, 6),
        speaker=row.speaker,
        session=row.session,
        dialogue=row.dialogue or name,
        turn=row.turn,
        text=row.text,
        emotion=emotion,
    )
    if not is_part:
        return Labeled(utterance, recording, None, None, row.split)
    return Labeled(utterance, recording, start, end, row.split)
