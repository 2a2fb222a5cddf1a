"""What ``emoq serve`` answers to an upload, whatever the page looks like."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from emoq_modules.dataio.audio import SAMPLE_RATE
from emoq_modules.dataio.recordings import Recording, cut
from emoq_modules.errors import AudioError, UploadError

# Of a minute of fast speech, about twice; what a name may take up.
_MAX_TEXT = 2000
_MAX_SPEAKER = 100


@dataclass(frozen=True)
class Answer:
    """What was recognized in an upload.

    Attributes
    ----------
    whole : Recognition
        Of all of it.
    windows : list of Recognition
        Its time line; empty if it is no longer than one window.
    samples : torch.Tensor
        The recording at 16 kHz, ``(T,)``.
    prompt : str
        What the LLM was asked, with the voice's place in it.
    """

    whole: object
    windows: list
    samples: torch.Tensor
    prompt: str

    def as_json(self):
        """The answer as programs get it, of plain values."""
        return {
            **_as_json(self.whole),
            "windows": [_as_json(window) for window in self.windows],
            "prompt": self.prompt,
        }


def answer(recognizer, settings, path, text="", speaker=""):
    """Recognizes the emotion in an upload, if there is nothing against it.

    Arguments
    ---------
    recognizer : EmotionRecognizer
        The trained system.
    settings : ServeSettings
        What it may take.
    path : str | None
        The uploaded file.
    text : str | None
        What was said, if it is known.
    speaker : str | None
        Who said it, likewise.

    Returns
    -------
    Answer

    Raises
    ------
    UploadError
        If there is no recording, if it is no audio, damaged, empty or too
        long, or if the transcript or the name is too long.
    """
    text, speaker = (text or "").strip(), (speaker or "").strip()
    _check_length("transcript", text, _MAX_TEXT)
    _check_length("speaker's name", speaker, _MAX_SPEAKER)
    samples = _samples(path, settings.max_seconds)
    recording = Recording(path, text, speaker or None)
    (whole,) = recognizer.recognize(
        [recording],
        abstain_below=settings.abstain_below,
        max_seconds=settings.max_seconds,
    )
    if whole.error is not None:
        raise UploadError(_without_path(whole.error, path))
    windows = []
    if len(samples) > settings.window_s * SAMPLE_RATE:
        windows = recognizer.timeline(
            path,
            window_s=settings.window_s,
            hop_s=settings.hop_s,
            speaker=recording.speaker,
            abstain_below=settings.abstain_below,
        )
    prompt = recognizer.prompt_text(text, speaker or None)
    return Answer(whole, list(windows), samples, prompt)


def _samples(path, max_seconds):
    if not path:
        raise UploadError("There is no recording: upload one, or record it.")
    if not Path(path).is_file():
        raise UploadError(
            "The recording is not here any more, since none is kept: send it "
            "again."
        )
    if not Path(path).stat().st_size:
        raise UploadError("The recording is empty: a file of 0 bytes.")
    try:
        # One part, a little longer than may be, of which no more is read.
        ((_, end, samples, fault),) = cut(path, [(0, max_seconds + 0.1)])
    except AudioError as error:
        raise UploadError(_without_path(str(error), path)) from error
    if fault:
        raise UploadError(_without_path(fault, path))
    if end > max_seconds:
        raise UploadError(
            f"The recording is longer than {max_seconds:g} s, which is the "
            "most that is taken here: send a part of it."
        )
    return samples


def _check_length(what, value, most):
    if len(value) > most:
        raise UploadError(
            f"The {what} has {len(value):,} characters; {most:,} are the most "
            "that are taken here."
        )


def _without_path(message, path):
    return message.replace(str(path), "The recording")


def _as_json(recognition):
    values = asdict(recognition)
    for private in ("path", "error", "text"):  # the host's, or the visitor's
        del values[private]
    return values
