"""MELD's CSV files: what was said, by whom, when, and with what emotion."""

import contextlib
import re
from collections import defaultdict
from itertools import combinations

from emoq_modules.dataio.tables import read_table
from emoq_modules.errors import CorpusError

LABELS = ("neutral", "angry", "sadness", "joy", "surprise", "disgust", "fear")

# MELD's word -> the word to predict, where the two differ.
WORDS = {"anger": "angry"}

COLUMNS = (
    "Utterance",
    "Speaker",
    "Emotion",
    "Dialogue_ID",
    "Utterance_ID",
    "Season",
    "Episode",
    "StartTime",
    "EndTime",
)


def read_annotations(split, path):
    """Key -> row of a CSV file, its emotion in our words."""
    table = read_table(path)
    absent = [column for column in COLUMNS if column not in table.columns]
    if absent:
        raise CorpusError(
            f"{path} has no column {', '.join(absent)}: it is not MELD's."
        )
    rows = {}
    for line, row in zip(table.lines, table.rows, strict=True):
        _check_numbers(row, f"Line {line} of {path}")
        key = f"{split}/dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
        emotion = row["Emotion"].strip().lower()
        row["Emotion"] = WORDS.get(emotion, emotion)
        fault = None
        if key in rows:
            fault = "repeats an earlier row"
        elif row["Emotion"] not in LABELS:
            fault = f"has an unknown emotion, '{emotion}'"
        if fault:
            raise CorpusError(
                f"Line {line} of {path} ({key}) {fault}: compare the file "
                "with the published one."
            )
        rows[key] = row
    return rows


def _check_numbers(row, place):
    """Refuses what is no number, and makes ``8`` of the ``8.0`` of pandas."""
    for name in ("Dialogue_ID", "Utterance_ID", "Season", "Episode"):
        try:
            number = float(row[name])
            row[name] = str(int(number))
            strange = number % 1
        except (ValueError, OverflowError):
            strange = True
        if strange:
            raise CorpusError(
                f"{place} has the {name} {row[name]!r}, which is no whole "
                "number: compare the file with the published one."
            )
    try:
        annotated_times(row)
    except CorpusError as error:
        raise CorpusError(f"{place}: {error}") from error


def annotated_times(row):
    """Start and end of an utterance in its episode, in seconds."""
    times = [row["StartTime"], row["EndTime"]]
    try:
        start, end = map(_seconds, times)
    except ValueError as error:
        raise CorpusError(
            f"Dialogue {row['Dialogue_ID']}, utterance {row['Utterance_ID']} "
            f"has the StartTime and EndTime {times}, which are no hours, "
            "minutes and seconds: compare the CSV file with the published one."
        ) from error
    return start, end


def find_episode(row):
    """Season and episode of an utterance."""
    return int(row["Season"]), int(row["Episode"])


def _seconds(time):
    """Seconds of ``00:16:16,059``, or of a number of them."""
    *larger, seconds = time.replace(",", ".").split(":")
    hours, minutes = map(int, larger or ("0", "0"))
    return 3600 * hours + 60 * minutes + float(seconds)


def find_repeats(rows):
    """Pairs of keys, of two splits in their order, that have the same sound.

    Such are of one episode, at times that overlap, and the words of one are
    among those of the other: where a scene is in two splits, it may be cut into
    utterances at other places.
    """
    episodes = defaultdict(list)
    for key, row in rows.items():
        words = re.findall(r"\w+", repair(row["Utterance"]).lower())
        utterance = key, *annotated_times(row), f" {' '.join(words)} "
        episodes[row["Season"], row["Episode"]].append(utterance)
    return [
        (key, other)
        for episode in episodes.values()
        for (key, start, end, words), (other, start_2, end_2, words_2) in (
            combinations(episode, 2)
        )
        if key.split("/")[0] != other.split("/")[0]
        and max(start, start_2) < min(end, end_2)
        and (words in words_2 or words_2 in words)
    ]


def repair(text):
    """Undo wrong encodings and line breaks.

    Some copies of the CSV files hold bytes of Windows-1252 as control
    characters (``\\x92`` for an apostrophe), some UTF-8 read as
    Windows-1252. Each letter is looked at by itself: what is no UTF-8 was
    meant as it is.
    """
    text = re.sub("[\x80-\x9f]", lambda found: _as_1252(ord(found[0])), text)
    return " ".join(_MISREAD.sub(_as_utf8, text).split())


def _as_1252(byte):
    # Windows gives the five bytes that it has no letter for back as they are.
    with contextlib.suppress(UnicodeDecodeError):
        return bytes([byte]).decode("cp1252")
    return chr(byte)


_ENDS = f"[{re.escape(''.join(map(_as_1252, range(0x80, 0xC0))))}]"
# What UTF-8 makes of one letter of western Europe, or a picture, each byte read
# as a letter of Windows-1252. Others, such as "é…”", are mostly what they are.
_MISREAD = re.compile(f"[ÂÃÅ]{_ENDS}|â{_ENDS}{{2}}|ð{_ENDS}{{3}}")
_BYTES = {_as_1252(byte): byte for byte in range(256)}


def _as_utf8(found):
    with contextlib.suppress(UnicodeDecodeError):
        return bytes(_BYTES[letter] for letter in found[0]).decode("utf-8")
    return found[0]
