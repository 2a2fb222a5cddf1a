"""Reads manifests and dialogues, and checks every row of them.

What was checked once is not checked again while the file is the same. The rows
of a manifest that was found good are kept in columns beside it
(manifest_rows.py), for the manifest's digest; audio is opened only if it is not
among the ``AudioDigests``, who would have noticed a change.
"""

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np

from emoq_modules.dataio.audio import audio_duration
from emoq_modules.dataio.manifest import (
    COLUMNS,
    Turn,
    digest_of_file,
    list_faults,
    unknown_label,
)
from emoq_modules.dataio.manifest_rows import (
    DATA_ROOT,
    Manifest,
    ManifestRows,
    load_rows,
    pack_rows,
    save_rows,
)
from emoq_modules.errors import AudioError, CorpusError

logger = logging.getLogger(__name__)

_TEXTS = [name for name in COLUMNS[1:] if name not in ("duration", "turn")]
_LARGEST = 2**63


def read_manifest(path, labels, data_root=None, digests=None):
    """Read a manifest and check every row of it.

    Arguments
    ---------
    path : str or Path
        A manifest as ``write_manifests`` writes it.
    labels : Sequence[str]
        The emotion words that may occur.
    data_root : str or Path, optional
        What ``{data_root}`` in the paths stands for.
    digests : AudioDigests, optional
        Knows audio that is not opened again; without it all of it is.

    Returns
    -------
    Manifest
        Id -> the columns of ``Utterance`` but for the id, ``wav`` resolved; as
        SpeechBrain's ``DynamicItemDataset`` takes it.

    Raises
    ------
    CorpusError
        Names the rows at fault (the first few), what is wrong and what to do.
    """
    rows = read_rows(path, data_root)
    if digests is None:
        known = np.full(len(rows), b"", "S16")
    else:
        known = digests.known(rows.column("wav"))
    problems = {
        place: unknown_label("", emotion, labels).strip()
        for place, emotion in enumerate(rows.column("emotion"))
        if emotion not in labels
    }
    for place in np.flatnonzero(known == b"").tolist():
        problem = _audio_problem(rows[place]["wav"], data_root)
        if problem is not None:
            problems.setdefault(place, problem)
    _refuse(
        path,
        [
            f"row '{rows[place]['id']}' {problem}"
            for place, problem in sorted(problems.items())
        ],
    )
    return Manifest(rows, known)


def read_rows(path, data_root=None):
    """Read a manifest's rows, and check what they need no audio for.

    Arguments
    ---------
    path : str or Path
        A manifest as ``write_manifests`` writes it.
    data_root : str or Path, optional
        What ``{data_root}`` in the paths stands for.

    Returns
    -------
    ManifestRows
        The rows, in the order of the manifest.

    Raises
    ------
    CorpusError
        Names the rows at fault (the first few), what is wrong and what to do.
    """
    path = Path(path)
    file = path.with_name(f"{path.stem}.rows")
    digest = digest_of_file(path) if path.exists() else None
    arrays = load_rows(file, digest)
    if arrays is None:
        arrays = pack_rows(COLUMNS, _checked_rows(path))
        try:
            save_rows(file, digest, arrays)
        except OSError as error:
            logger.info(f"Cannot write {file} ({error}): {path} will be parsed")
        else:
            # The mapped ones, which take no memory.
            arrays = load_rows(file, digest) or arrays
    return ManifestRows(COLUMNS, arrays, data_root)


def read_dialogues(path):
    """Read the dialogues and check every turn of them.

    Arguments
    ---------
    path : str or Path
        ``dialogues.json`` as ``write_manifests`` writes it.

    Returns
    -------
    dict[str, list[Turn]]
        Dialogue -> its turns, in their order.

    Raises
    ------
    CorpusError
        Names the dialogues at fault (the first few) and what to do.
    """
    path = Path(path)
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
        content = json.loads(path.read_bytes(), object_pairs_hook=unique)
    except FileNotFoundError as error:
        raise CorpusError(
            f"There is no manifest {path}: run the corpus's prepare step."
        ) from error
    except ValueError as error:
        raise CorpusError(
            f"The manifest {path} is damaged ({error}): delete it and run "
            "the prepare step again."
        ) from error
    return content, problems


def _checked_rows(path):
    """Id -> the other columns, whatever labels and audio they name."""
    rows, problems = _parse(path)
    if not isinstance(rows, dict) or not rows:
        raise CorpusError(
            f"The manifest {path} holds no utterances: run the prepare step "
            "again."
        )
    for key, row in rows.items():
        problem = _row_problem(row)
        if problem is not None:
            problems.append(f"row '{key}' {problem}")
    _refuse(path, problems)
    return rows


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
    if not isinstance(turn, int) or not -_LARGEST <= turn < _LARGEST:
        return f"has {turn!r} as its turn, which is no whole number"
    return None


def _audio_problem(wav, data_root):
    """What is wrong with a row's audio, or None."""
    if DATA_ROOT in wav and data_root is None:
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
