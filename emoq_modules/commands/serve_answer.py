"""What ``emoq serve`` answers to an upload, whatever the page looks like."""

import csv
import io
from dataclasses import replace
from pathlib import Path

from emoq_modules.commands.predict import csv_header, csv_row
from emoq_modules.commands.predict_inputs import Transcripts
from emoq_modules.dataio.audio import read_audio
from emoq_modules.dataio.recordings import SHORTEST_S, Recording
from emoq_modules.errors import (
    AudioError,
    ConfigurationError,
    CorpusError,
    UploadError,
)
from emoq_modules.evaluation.calibration import temperature_for

# About twice what is said in a minute of fast speech, and what a name takes.
_MAX_TEXT = 2000
_MAX_SPEAKER = 100
_MAX_RECORDINGS = 100  # at once
_TABLES = ".csv", ".tsv", ".txt", ".parquet"
_TOLD = "start", "end", "posteriors", "label", "confidence", "abstained"


def answer(recognizer, settings, path, text="", speaker=""):
    """Recognizes the emotion in an upload, if there is nothing against it.

    The upload is decoded once. Returns plain values: ``start``, ``end``
    (seconds), ``posteriors``, ``label``, ``confidence`` and ``abstained`` of
    the recording, as of ``Recognition``; ``windows``, a list of the same for
    its time line, by the voice alone, empty if the recording is no longer than
    one; ``calibrated``, whether the posteriors are, for what was asked; and
    ``prompt``, what the LLM was asked, with the voice's place in it.
    UploadError if there is no recording, if it is no audio, damaged, empty or
    too long, or if the transcript or the name is too long.
    """
    text, speaker = (text or "").strip(), (speaker or "").strip()
    _check_length("transcript", text, _MAX_TEXT)
    _check_length("speaker's name", speaker, _MAX_SPEAKER)
    recording = Recording(
        "The recording",
        text,
        speaker or None,
        samples=_samples(path, settings.max_seconds),
    )
    (whole,) = recognizer.recognize(
        [recording], abstain_below=settings.abstain_below
    )
    if whole.error is not None:
        raise UploadError(whole.error)
    windows = []
    if whole.end > settings.window_s:
        windows = recognizer.timeline(
            recording,
            settings.window_s,
            settings.hop_s,
            abstain_below=settings.abstain_below,
        )
    return {
        **_plain(whole),
        "windows": [*map(_plain, windows)],
        "calibrated": temperature_for(
            recognizer.hparams.temperature, whole.text
        )
        is not None,
        "prompt": recognizer.prompt_text(whole.text, speaker or None),
    }


def answer_all(recognizer, settings, paths):
    """Recognizes several uploads; one may be a table of their words.

    The table is as of ``Transcripts``. Returns a CSV as bytes, as ``emoq
    predict --format csv`` prints it, with the files' names as paths.
    UploadError if there is no recording, or the table cannot be read; what is
    wrong with a recording is in its row.
    """
    paths = [Path(path) for path in paths or ()]
    tables = [path for path in paths if path.suffix.lower() in _TABLES]
    paths = [path for path in paths if path not in tables]
    if not 0 < len(paths) <= _MAX_RECORDINGS or len(tables) > 1:
        raise UploadError(
            f"There are {len(paths)} recordings and {len(tables)} tables: send "
            f"1 to {_MAX_RECORDINGS} recordings, and one table at most."
        )
    try:
        words = Transcripts(tables[0]) if tables else None
    except (ConfigurationError, CorpusError) as error:
        message = str(error).replace(str(tables[0]), tables[0].name)
        raise UploadError(message) from error
    recordings = (
        Recording(path, *(words.find(path.name) if words else ()))
        for path in paths
    )
    labels, text = recognizer.hparams.labels, io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(csv_header(labels))
    found = recognizer.recognize(
        recordings,
        abstain_below=settings.abstain_below,
        max_seconds=settings.max_seconds,
    )
    for path, answered in zip(paths, found, strict=True):
        error = answered.error and answered.error.replace(str(path), path.name)
        answered = replace(answered, path=path.name, error=error)
        writer.writerow(csv_row(answered, labels))
    return text.getvalue().encode()


def _plain(recognition):
    """What of a ``Recognition`` is told."""
    return {key: getattr(recognition, key) for key in _TOLD}


def _samples(path, max_seconds):
    if not path:
        raise UploadError("There is no recording: upload one, or record it.")
    if not Path(path).is_file():
        raise UploadError(
            "The recording is not here any more, since none is kept for long: "
            "send it again."
        )
    try:
        return read_audio(path, max_seconds, SHORTEST_S)
    except AudioError as error:
        message = str(error).replace(str(path), "The recording")
        raise UploadError(message) from error


def _check_length(what, value, most):
    if len(value) > most:
        raise UploadError(
            f"The {what} has {len(value):,} characters; {most:,} are the most "
            "that are taken here."
        )
