"""What ``emoq serve`` answers to an upload, whatever the page looks like."""

from pathlib import Path

from emoq_modules.dataio.audio import read_audio
from emoq_modules.dataio.recordings import SHORTEST_S, Recording
from emoq_modules.errors import AudioError, UploadError

# About twice what is said in a minute of fast speech, and what a name takes.
_MAX_TEXT = 2000
_MAX_SPEAKER = 100
_TOLD = "start", "end", "posteriors", "label", "confidence", "abstained"


def answer(recognizer, settings, path, text="", speaker=""):
    """Recognizes the emotion in an upload, if there is nothing against it.

    The upload is decoded once. Returns plain values: ``start``, ``end``
    (seconds), ``posteriors``, ``label``, ``confidence`` and ``abstained`` of
    the recording, as of ``Recognition``; ``windows``, a list of the same for
    its time line, by the voice alone, empty if the recording is no longer than
    one; and ``prompt``, what the LLM was asked, with the voice's place in it.
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
        "prompt": recognizer.prompt_text(whole.text, speaker or None),
    }


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
