"""Reads manifests and dialogues, and checks every row of them.

Audio is opened only if it is not among the ``AudioDigests``, who would have
noticed a change.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from emoq_modules.dataio.audio import audio_duration
from emoq_modules.dataio.manifest import (
    COLUMNS,
    Turn,
    Utterance,
    list_faults,
)
from emoq_modules.errors import AudioError, CorpusError

_DATA_ROOT = "{data_root}"
# Columns that many rows have in common.
_REPEATED = "speaker", "session", "dialogue", "emotion", "corpus"
_TEXTS = "wav", "text", *_REPEATED


def read_manifest(path, labels, data_root=None, digests=None, with_audio=True):
    """Reads a manifest, and checks every row of it and its audio.

    Gives the ``Utterance`` of each id, ``wav`` resolved by what ``{data_root}``
    stands for, as SpeechBrain's ``DynamicItemDataset`` takes them. Audio that
    the ``AudioDigests`` know is not opened, and none at all not ``with_audio``,
    where nothing hears it. ``CorpusError`` names the first few rows at fault,
    what is wrong and what to do.
    """
    rows = parse_manifest(path, data_root)
    problems = []
    for key, row in rows.items():
        problem = None
        if row.emotion not in labels:
            words = ", ".join(labels)
            problem = f"has the label '{row.emotion}', not one of {words}"
        elif with_audio and (digests is None or digests.known(row.wav) is None):
            problem = _audio_problem(row.wav, data_root)
        if problem is not None:
            problems.append(f"row '{key}' {problem}")
    _refuse(path, problems)
    return rows


def parse_manifest(path, data_root=None):
    """Reads a manifest, and checks what needs neither labels nor audio."""
    found, problems = _parse(path)
    if not isinstance(found, dict) or not found:
        raise CorpusError(
            f"The manifest {path} holds no utterances: run the prepare step "
            "again."
        )
    root = _DATA_ROOT if data_root is None else str(data_root)
    rows = {}
    for key, row in found.items():
        if isinstance(row, dict):
            row.setdefault("corpus", "")  # earlier versions wrote none
        problem = _row_problem(row)
        if problem is not None:
            problems.append(f"row '{key}' {problem}")
            continue
        row = {name: row[name] for name in COLUMNS[1:]}
        row["wav"] = row["wav"].replace(_DATA_ROOT, root)
        for name in _REPEATED:
            row[name] = sys.intern(row[name])
        rows[key] = Utterance(key, **row)
    _refuse(path, problems)
    return rows


def read_dialogues(path):
    """Reads the dialogues, and checks the turns of each and their order."""
    dialogues, problems = _parse(path)
    if not isinstance(dialogues, dict):
        raise CorpusError(
            f"{path} holds no dialogues: run the prepare step again."
        )
    problems += [
        f"dialogue '{name}' is no list of [turn, speaker, text], turn by turn"
        for name, turns in dialogues.items()
        if not _are_turns(turns)
    ]
    _refuse(path, problems)
    return {
        name: [Turn(*turn) for turn in turns]
        for name, turns in dialogues.items()
    }


def _parse(path):
    """What a manifest holds, and which of its keys are repeated."""
    problems = []

    def unique(pairs):
        """A dict of JSON pairs, noting keys that occur twice."""
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            problems.extend(
                f"'{key}' occurs more than once"
                for key, count in counts.items()
                if count > 1
            )
        return found

    try:
        content = Path(path).read_bytes()
        return json.loads(content, object_pairs_hook=unique), problems
    except FileNotFoundError as error:
        raise CorpusError(
            f"There is no manifest {path}: run the corpus's prepare step."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CorpusError(
            f"The manifest {path} is damaged ({error}): delete it and run "
            "the prepare step again."
        ) from error


def _refuse(path, problems):
    """Raise ``CorpusError`` if a manifest has any."""
    if problems:
        raise CorpusError(
            f"The manifest {path} has {list_faults(problems)}\n"
            "Mend the data or settings and run the prepare step again."
        )


def _row_problem(row):
    """What is wrong with a manifest's row, whatever its audio; or None."""
    if not isinstance(row, dict):
        return "is not a set of columns"
    missing = [name for name in COLUMNS[1:] if name not in row]
    if missing:
        return f"has no {', '.join(missing)}"
    for name in _TEXTS:
        if not isinstance(row[name], str):
            return f"has {row[name]!r} as its {name}, which is no text"
    duration, turn = row["duration"], row["turn"]
    if not isinstance(duration, int | float) or not duration > 0:
        return f"lasts {duration!r} s"
    if not isinstance(turn, int) or not -(2**63) <= turn < 2**63:
        return f"has {turn!r} as its turn, which is no whole number"
    return None


def _audio_problem(wav, data_root):
    """What is wrong with a row's audio, or None."""
    if _DATA_ROOT in wav and data_root is None:
        return "has {data_root} in its path, and no data_root was given"
    try:
        audio_duration(wav)
    except AudioError as error:
        return f"has bad audio: {error}"
    return None


def _are_turns(turns):
    """Whether these are ``[turn, speaker, text]``, in the order of turns."""
    if not isinstance(turns, list):
        return False
    kinds = (int, str, str)
    for turn in turns:
        if not isinstance(turn, list) or len(turn) != len(kinds):
            return False
        if not all(map(isinstance, turn, kinds)):
            return False
    numbers = [turn[0] for turn in turns]
    return numbers == sorted(set(numbers))
