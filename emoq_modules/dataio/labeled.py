"""Labeled recordings from a table: utterances, checked row by row.

What is wrong with the rows is found in one pass, and told together, before
anything is made of them.
"""

import itertools
import logging
import os
import stat
import unicodedata
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
from emoq_modules.dataio.recordings import SHORTEST_S
from emoq_modules.dataio.tables import open_listing, parse_pairs
from emoq_modules.errors import AudioError, CorpusError

logger = logging.getLogger(__name__)

UNUSABLE = "unusable audio file"  # why a row is left out
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


def count_labels(tables, columns=None, label_map=None):
    """How many rows of tables each label has, the most frequent first.

    Takes what ``open_listing`` takes, and a mapping, as of ``parse_pairs``, of
    a label of the tables to the one that it becomes.
    """
    listing = open_listing(tables, columns)
    label_map = _read_map(label_map, listing)
    words = (row["emotion"] for row in listing.rows)
    counts = Counter(label_map.get(word, word) for word in words if word)
    if len(counts) > _MOST_LABELS:
        raise CorpusError(
            f"The emotions of {listing.name} are {len(counts)} different "
            f"values, such as {', '.join(list(counts)[:3])}: name their column "
            "by --columns emotion=COLUMN."
        )
    _check_spelling(counts)
    # Equal counts in the order of the alphabet, whatever that of the rows is.
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _check_spelling(counts):
    """Refuses labels that are one but for capitals."""
    spellings = defaultdict(list)
    for word, _ in counts.most_common():
        spellings[word.casefold()].append(word)
    pairs = [
        f"{word}={first}"
        for first, *others in spellings.values()
        for word in others
    ]
    if pairs:
        raise CorpusError(
            "There are labels that differ in capitals alone. If they mean the "
            f'same: --label_map "{", ".join(pairs)}"'
        )


def _read_map(label_map, listing):
    label_map = parse_pairs(label_map)
    labels = dict.fromkeys(row["emotion"] for row in listing.rows)
    unknown = sorted(label_map.keys() - labels.keys())
    if unknown:
        raise CorpusError(
            f"{listing.name} has no label {name_few(unknown)}, which the "
            f"label_map names; it has {name_few(list(filter(None, labels)))}."
        )
    if "" in label_map.values():
        raise CorpusError(
            f"The label_map {label_map} gives a label none in its place: leave "
            "classes out by --labels."
        )
    return label_map


def read_labeled(tables, data_folder, labels, columns=None, label_map=None):
    """Reads the labeled recordings of tables.

    Arguments
    ---------
    tables : str | Path | list | Listing
        As of ``open_listing``.
    data_folder : str or Path
        The folder that paths in a table are relative to, if not to that of
        the table in it; they may not lead out of it. ``{data_root}`` in the
        utterances' ``wav`` stands for it.
    labels : Sequence[str]
        The classes to keep; rows of others are left out.
    columns : str | dict
        As of ``open_listing``.
    label_map : str | dict
        As of ``parse_pairs``, the label that one of a table becomes.

    Returns
    -------
    tuple[list[Labeled], dict[str, list[Turn]], dict[str, list[str]]]
        In the order of the tables; the turns of each dialogue, those that are
        left out, too; and the ids of these, by reason.

    Raises
    ------
    CorpusError
        Files that are missing or outside the folder, numbers that are none,
        parts beyond the end of a recording, a recording twice: all at once.
    """
    listing = open_listing(tables, columns)
    if not Path(data_folder).is_dir():
        raise CorpusError(f"There is no folder {data_folder}.")
    label_map = _read_map(label_map, listing)
    faults = []
    rows = [
        _Row(number, cells, faults) for number, cells in enumerate(listing.rows)
    ]
    recordings = _find_recordings(rows, Path(data_folder), listing.folders)
    _check_turns(rows, listing.places)
    skipped, kept, seen = defaultdict(list), [], {}
    dialogues = defaultdict(list)
    for row, name in zip(rows, _name_rows(rows), strict=True):
        turn = Turn(row.turn, row.speaker, row.text)
        dialogues[row.dialogue or name].append(turn)
        emotion = label_map.get(row.emotion, row.emotion)
        seconds = recordings.get(row.path)
        if isinstance(seconds, float):
            # Through links: one recording is one, whatever its names.
            file = os.path.realpath(os.path.join(data_folder, row.path))
            part = file, row.start, row.end
            earlier = seen.setdefault(part, (row.number, emotion))
            if earlier[0] != row.number:
                what = repr(emotion)
                if earlier[1] != emotion:
                    what = f"{earlier[1]!r} and {emotion!r}"
                place = listing.places[earlier[0]]
                row.fault(f"{name} is as {what} in {place}, too")
                continue
        if not emotion:
            skipped["without an emotion"].append(name)
        elif emotion not in labels:
            skipped[f"labeled '{emotion}'"].append(name)
        elif isinstance(seconds, AudioError):
            logger.warning(f"{name} is left out: {seconds}.")
            skipped[UNUSABLE].append(name)
        elif seconds is not None:
            kept.append(_labeled(row, name, emotion, seconds, data_folder))
    if faults:
        told = [f"{listing.places[n]}: {what}" for n, what in sorted(faults)]
        raise CorpusError(f"The table {listing.name} has {list_faults(told)}")
    return kept, dialogues, skipped


class _Row:
    """The cells of a row, its numbers read; faults go into a list."""

    def __init__(self, number, values, faults):
        self.number, self._faults = number, faults
        # Tables that were made on Windows have its separator.
        self.path = values["path"].replace("\\", "/")
        self.emotion, self.text = values["emotion"], values["text"]
        self.speaker, self.dialogue = values["speaker"], values["dialogue"]
        self.session, self.split = values["session"], values["split"]
        self.corpus = values["corpus"]
        self.start, self.end, self.turn = (
            self._number(name, values[name])
            for name in ("start", "end", "turn")
        )
        if not self.path:
            self.fault("it has no path")
        self.has_turn = bool(values["turn"])
        # Of a dialogue without turns they are as the table has them.
        if self.turn is None or not self.dialogue:
            self.turn = number if self.dialogue else 0
        if self.turn % 1:
            self.fault(f"turn is {values['turn']}, which is no whole number")
        self.turn = int(self.turn)
        self.is_part = self.start is not None or self.end is not None
        start = self.start or 0.0
        if start < 0 or (self.end is not None and self.end <= start):
            self.fault(
                f"it is from {start:g} s to {values['end'] or 'the end'}"
            )

    def fault(self, what):
        """Notes what is wrong with the row."""
        self._faults.append((self.number, what))

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


def _find_recordings(rows, data_folder, folders):
    """Seconds of each recording by its path, or the AudioError of it.

    Paths become relative to the data folder, ends of parts known. ``folders``
    are those of the rows' tables.
    """
    found, places = {}, {}
    for row in tqdm(rows, "recordings", disable=None):
        if not row.path:
            continue
        asked = row.path, folders[row.number]
        if asked not in places:
            places[asked] = _place(data_folder, *asked)
        if isinstance(places[asked], AudioError):
            row.fault(str(places[asked]))
            continue
        row.path = places[asked]
        if row.path not in found:
            try:
                found[row.path] = audio_duration(data_folder / row.path)
            except AudioError as error:
                found[row.path] = error
        seconds = found[row.path]
        if row.is_part and isinstance(seconds, float):
            _check_part(row, seconds)
    return found


def _place(data_folder, path, beside):
    """Where a recording is, relative to the data folder, or an AudioError.

    The path is from there, or from ``beside``, the folder of the table.
    """
    inside = False
    # One letter may be written in two ways, in a table and on the disk.
    forms = [unicodedata.normalize(form, path) for form in ("NFC", "NFD")]
    names = dict.fromkeys([path, *forms])
    for base, name in itertools.product((data_folder, beside), names):
        # Through links if need be.
        for full in (os.path.abspath, os.path.realpath):
            folder, whole = full(data_folder), full(os.path.join(base, name))
            if whole.startswith(os.path.join(folder, "")):
                inside = True
                if _is_file(whole):
                    return Path(os.path.relpath(whole, folder)).as_posix()
                break
    if inside:
        return AudioError(f"there is no file {path} in {data_folder}")
    return AudioError(f"{path} is outside of {data_folder}")


def _is_file(path):
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except PermissionError:  # reading it will say so
        return True
    except (OSError, ValueError):
        return False


def _check_part(row, seconds):
    end = seconds if row.end is None else row.end
    start = row.start = row.start or 0.0
    # Times are rounded, as a rule.
    if end > seconds + 0.05 or start >= seconds:
        row.fault(f"{row.path} ends at {seconds:.2f} s, before {end:g} s")
    elif 0 <= start < end < start + SHORTEST_S:
        row.fault(
            f"it lasts {1000 * (end - start):.3g} ms, and has to last "
            f"{1000 * SHORTEST_S:g} at least"
        )
    row.end = min(end, seconds)


def _check_turns(rows, places):
    """Turns are known of all rows of a dialogue or of none, and differ."""
    counted = defaultdict(list)
    for row in rows:
        if row.dialogue:
            counted[row.dialogue].append(row)
    for dialogue, its in counted.items():
        known = {}
        for row in its:
            if row.has_turn != its[0].has_turn:
                row.fault(f"some rows of dialogue {dialogue} have no turn")
            elif known.setdefault(row.turn, row) is not row:
                row.fault(
                    f"turn {row.turn} of dialogue {dialogue} is in "
                    f"{places[known[row.turn].number]}, too (--columns turn= "
                    "leaves turns out)"
                )


def _name_rows(rows):
    """An id for each row: its file's name, as far as that is its alone."""
    paths = {row.path for row in rows}
    bare = {path: os.path.splitext(path)[0] for path in paths}
    alone = len({os.path.basename(x) for x in bare.values()}) == len(paths)
    if len(set(bare.values())) < len(paths):  # a.wav beside a.flac
        bare = {path: path for path in paths}
    names = []
    for row in rows:
        name = bare[row.path]
        name = os.path.basename(name) if alone else name
        if row.is_part:
            times = (
                f"{x or 0.0:.6f}".rstrip("0") for x in (row.start, row.end)
            )
            name += "@" + "-".join(x.rstrip(".") for x in times)
        names.append(name)
    return names


def _labeled(row, name, emotion, seconds, data_folder):
    """The utterance of a row, whose recording is of so many seconds."""
    file = Path(data_folder, row.path)
    if row.is_part:
        seconds = row.end - row.start
    utterance = Utterance(
        id=name,
        wav=rooted(file, Path(data_folder)),
        duration=round(seconds, 6),
        speaker=row.speaker,
        session=row.session,
        dialogue=row.dialogue or name,
        turn=row.turn,
        text=row.text,
        emotion=emotion,
        corpus=row.corpus,
    )
    # Through links: one recording is one, whatever its names.
    recording = Path(os.path.realpath(file))
    return Labeled(utterance, recording, row.start, row.end, row.split)
