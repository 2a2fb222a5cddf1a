"""Anyone's recordings: from a table with their paths and emotions to manifests.

``python recipes/table/table_prepare.py DATA_FOLDER SAVE_FOLDER TABLE`` runs it
alone.
"""

import contextlib
import hashlib
import io
import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import Literal

import soundfile
from speechbrain.utils.distributed import infer_device
from tqdm import tqdm

from emoq_modules.dataio.audio import SAMPLE_RATE, read_audio
from emoq_modules.dataio.files import write_atomically
from emoq_modules.dataio.labeled import count_labels, read_labeled
from emoq_modules.dataio.prepare import (
    check_choice,
    is_prepared,
    main,
    name_few,
    write_manifests,
)
from emoq_modules.dataio.recordings import Recording
from emoq_modules.dataio.splits import (
    check_rest,
    draw_fold,
    find_groups,
    own_splits,
    split_by_dialogue,
)
from emoq_modules.dataio.tables import make_table, open_listing
from emoq_modules.errors import CorpusError
from emoq_modules.inference.asr import load_transcriber, with_texts
from emoq_modules.inference.batching import Segment

logger = logging.getLogger(__name__)

VALID_FRACTION = 0.1
FOLDS = 5


def find_labels(
    table,
    columns=None,
    label_map=None,
    min_utterances=10,
    rare_labels="left_out",
):
    """The labels of tables that enough utterances have, most frequent first.

    Takes what ``count_labels`` takes. ``CorpusError`` where there are fewer
    than two, or some are rare and ``rare_labels`` is ``refused``.
    """
    check_choice("rare_labels", rare_labels, ("left_out", "refused"))
    counts = count_labels(table, columns, label_map)
    rare = {word: n for word, n in counts.items() if n < min_utterances}
    labels = [word for word in counts if word not in rare]
    if rare:
        told = (
            f"labels of fewer than {min_utterances} utterances: "
            f"{name_few([f'{word}: {n}' for word, n in rare.items()])}."
        )
        if rare_labels == "refused":
            raise CorpusError(
                f"There are {told} Join some by --label_map, or set "
                "--min_utterances, or --rare_labels left_out."
            )
        logger.warning(f"Left out are {told}")
    if len(labels) < 2:
        raise CorpusError(
            f"The table has {len(labels)} labels with {min_utterances} "
            "utterances or more, and two are needed: join some by --label_map, "
            "or set --min_utterances."
        )
    return labels


def count_folds(table, columns=None):
    """How many folds there are: 1 of a table with its own splits, else 5."""
    if callable(table):
        return FOLDS
    rows = open_listing(table, columns).rows
    return 1 if any(row["split"] for row in rows) else FOLDS


def prepare_table(
    data_folder: str,
    save_folder: str,
    table: str,
    labels: tuple[str, ...] = (),
    columns: str = "",
    label_map: str = "",
    min_utterances: int = 10,
    fold: int = 1,
    folds: int = FOLDS,
    validate_on: Literal["groups", "dialogues"] = "groups",
    seed: int = 1234,
    segments_folder: str = "",
    transcribe: str = "",
    transcribe_language: str = "",
    transcripts: str = "",
):
    """Make the manifests of one fold of a table of recordings.

    A table has a row for each recording, or for each part of one: its path and
    its emotion, and where they are known text, speaker, dialogue, turn,
    session, split, start and end (seconds).

    Where it has no splits of its own, a fold tests rows that share no speaker,
    dialogue, session or recording with any that train or validate: one such
    group, where there are as many as folds, else several with about the same
    share of each label. Without speakers, dialogues and sessions the folds are
    drawn at random.

    Arguments
    ---------
    data_folder : str
        The folder that paths in the table are relative to, and what
        ``{data_root}`` in the manifests stands for.
    save_folder : str
        Where the manifests go.
    table : str
        CSV in any dialect, or Parquet; several, with commas between, that are
        to train together; or a function as those of corpora.py.
    labels : tuple[str, ...]
        The classes; those of the table that are frequent enough if not given.
    columns : str
        Columns of unusual names: "path=file_id, emotion=label".
    label_map : str
        What labels of the table become: "ang=angry, exc=happy".
    min_utterances : int
        What is rarer is left out.
    fold : int
        Which of the folds is tested; 1 where the table has splits.
    folds : int
        How many there are.
    validate_on : str
        A tenth of what is not tested validates: whole groups, or dialogues,
        whose speakers train, too.
    seed : int
        Of the choice of folds and validation.
    segments_folder : str
        Where parts of recordings are cut to, SAVE_FOLDER/segments if not given.
    transcribe : str
        A speech recognition model of transformers, for rows without a text.
    transcribe_language : str
        The language that it is to expect, if it is a Whisper.
    transcripts : str
        The file that keeps what it heard, SAVE_FOLDER/transcripts.jsonl if not
        given.

    Raises
    ------
    CorpusError
        The table cannot be read, or holds what cannot be meant, or cannot be
        split that way.
    """
    if not isinstance(folds, int) or folds < 1:
        raise CorpusError(
            f"folds is {folds}; it has to be a number, 2 or more."
        )
    check_choice("fold", fold, range(1, folds + 1))
    check_choice("validate_on", validate_on, ("groups", "dialogues"))
    if callable(table):
        table = make_table(data_folder, table(data_folder))
    listing = open_listing(table, columns)
    labels = labels or find_labels(
        listing, label_map=label_map, min_utterances=min_utterances
    )
    _check_labels(labels, count_labels(listing, label_map=label_map))
    settings = {
        "corpus": "table",
        "data_folder": Path(data_folder).resolve(),
        "table": listing.digest,
        "labels": labels,
        "columns": columns,
        "label_map": label_map,
        "fold": fold,
        "folds": folds,
        "validate_on": validate_on,
        "seed": seed,
        "segments_folder": segments_folder,
        "transcribe": transcribe,
        "transcribe_language": transcribe_language,
    }
    if is_prepared(save_folder, settings):
        return
    rows, dialogues, skipped = read_labeled(
        listing, data_folder, labels, label_map=label_map
    )
    if not rows:
        raise CorpusError(
            f"No row of {listing.name} has a usable recording with one of the "
            f"labels {', '.join(labels)}."
        )
    groups, notes = find_groups(rows), []
    if any(row.split for row in rows):
        check_choice("fold, of a table with splits of its own,", fold, [1])
        splits = own_splits(rows, notes)
    else:
        splits = draw_fold(rows, groups, fold, folds, seed, notes)
    if not splits["valid"]:
        finer = find_groups(rows, ("dialogue", "recording"))
        if validate_on == "dialogues":
            groups = finer
        check_rest(splits["train"], groups, validate_on, finer)
        splits["train"], splits["valid"] = split_by_dialogue(
            splits["train"], VALID_FRACTION, seed, groups
        )
    _cut(rows, Path(segments_folder or Path(save_folder, "segments")))
    untold = [row for row in rows if not row.utterance.text]
    if untold and transcribe:
        file = Path(transcripts or Path(save_folder, "transcripts.jsonl"))
        notes.append(
            f"The words of {len(untold)} of {len(rows)} utterances were "
            f"recognized by {transcribe}."
        )
        _transcribe(untold, transcribe, transcribe_language or None, file)
        _tell(dialogues, untold)
    elif untold:
        notes.append(f"{len(untold)} of {len(rows)} utterances have no text.")
    write_manifests(
        save_folder, splits, labels, settings, skipped, dialogues, notes
    )


def _check_labels(labels, counts):
    labels = list(labels)
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise CorpusError(
            f"labels is {labels}: two or more are needed, each once."
        )
    absent = [label for label in labels if label not in counts]
    if absent:
        raise CorpusError(
            f"There is no row of the labels {name_few(absent)}; the table has "
            f"{name_few(list(counts))}."
        )


def _transcribe(rows, model, language, file):
    """Gives rows the words that a model hears, and keeps them in a file."""
    known = {}
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            # A line that a kill cut off is one of words to hear again.
            with contextlib.suppress(ValueError):
                *key, text = json.loads(line)
                known[tuple(key)] = text
    keys = {
        row.utterance.id: (
            *(row.utterance.id, row.utterance.duration, model, language),
        )
        for row in rows
    }
    unheard = [row for row in rows if keys[row.utterance.id] not in known]
    if unheard:
        transcriber = load_transcriber(model, infer_device(), language)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:
            lines.write("\n" * bool(file.stat().st_size))
            segments = map(_segment, tqdm(unheard, "words", disable=None))
            heard = with_texts(segments, transcriber)
            for row, segment in zip(unheard, heard, strict=True):
                key, text = keys[row.utterance.id], segment.recording.text
                known[key] = text
                lines.write(json.dumps([*key, text], ensure_ascii=False))
                lines.write("\n")
                lines.flush()
    for row in rows:
        row.utterance.text = known[keys[row.utterance.id]]


def _segment(row):
    said = row.utterance
    path = row.recording if row.start is None else said.wav
    return Segment(Recording(path), 0.0, said.duration, read_audio(path))


def _tell(dialogues, rows):
    """Puts the words of rows into their dialogues, too."""
    words = {
        (row.utterance.dialogue, row.utterance.turn): row.utterance.text
        for row in rows
    }
    for name, turns in dialogues.items():
        turns[:] = [
            turn._replace(text=words.get((name, turn.turn), turn.text))
            for turn in turns
        ]


def _cut(rows, folder):
    """Cuts parts of recordings out, each to a file that its row names then."""
    parts = defaultdict(list)
    for row in rows:
        if row.start is not None:
            parts[row.recording].append(row)
    for recording, rows in tqdm(parts.items(), "parts", disable=None):
        samples = None
        for row in rows:
            # Another recording of that name, or the same when it has changed,
            # has a cut of its own.
            stat = recording.stat()
            stamp = f"{recording} {stat.st_size} {stat.st_mtime_ns}"
            stamp = hashlib.blake2b(stamp.encode(), digest_size=4).hexdigest()
            path = folder / f"{row.utterance.id}-{stamp}.wav"
            row.utterance.wav = str(path.absolute())
            if path.exists():
                continue
            if samples is None:
                samples = read_audio(recording)
            path.parent.mkdir(parents=True, exist_ok=True)
            span = (round(x * SAMPLE_RATE) for x in (row.start, row.end))
            # Of a full disk libsndfile says nothing.
            sound = io.BytesIO()
            part = samples[slice(*span)].numpy()
            soundfile.write(sound, part, SAMPLE_RATE, format="WAV")
            write_atomically(path, sound.getvalue())


if __name__ == "__main__":
    raise SystemExit(main(prepare_table))
