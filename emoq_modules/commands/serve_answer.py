"""What ``emoq serve`` answers to an upload, whatever the page looks like."""

from pathlib import Path

import torch

from emoq_modules.dataio.audio import SAMPLE_RATE
from emoq_modules.dataio.recordings import Recording, read_recording
from emoq_modules.errors import AudioError, UploadError

# Of a minute of fast speech, about twice; what a name may take up.
_MAX_TEXT = 2000
_MAX_SPEAKER = 100
_SILENCE = 1e-6  # mean square: -60 dB of full scale, as of a timeline
_BATCH_SIZE = 8  # windows that are recognized together


def answer(recognizer, settings, path, text="", speaker=""):
    """Recognizes the emotion in an upload, if there is nothing against it.

    The upload is decoded once.

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
    dict
        Of plain values: ``start``, ``end`` (in seconds), ``posteriors`` (a
        dict), ``label``, ``confidence`` and ``abstained`` of the recording, as
        of ``Recognition``; ``windows``, a list of the same for its time line,
        by the voice alone, empty if the recording is no longer than one; and
        ``prompt``, what the LLM was asked, with the voice's place in it.

    Raises
    ------
    UploadError
        If there is no recording, if it is no audio, damaged, empty or too
        long, or if the transcript or the name is too long.
    """
    text, speaker = (text or "").strip(), (speaker or "").strip()
    _check_length("transcript", text, _MAX_TEXT)
    _check_length("speaker's name", speaker, _MAX_SPEAKER)
    said = Recording("", text, speaker or None).readable()
    samples = _samples(path, settings.max_seconds)
    (whole,) = _recognize(
        recognizer, settings, samples[None], said.text, said.speaker
    )
    return {
        "start": 0.0,
        "end": len(samples) / SAMPLE_RATE,
        **whole,
        "windows": _timeline(recognizer, settings, samples, said.speaker),
        "prompt": recognizer.prompt_text(said.text, said.speaker),
    }


def _timeline(recognizer, settings, samples, speaker):
    """What is recognized in each window; the last ends where all does."""
    size = round(settings.window_s * SAMPLE_RATE)
    hop = max(1, round(settings.hop_s * SAMPLE_RATE))
    last = len(samples) - size
    if last <= 0:
        return []
    starts = [*range(0, last, hop), last]
    windows = {start: samples[start : start + size] for start in starts}
    heard = [n for n in starts if windows[n].square().mean() >= _SILENCE]
    found = dict.fromkeys(starts, _answered({}, None, None, True))
    for first in range(0, len(heard), _BATCH_SIZE):
        batch = heard[first : first + _BATCH_SIZE]
        wavs = torch.stack([windows[start] for start in batch])
        rows = _recognize(recognizer, settings, wavs, "", speaker)
        found.update(zip(batch, rows, strict=True))
    return [
        {"start": n / SAMPLE_RATE, "end": (n + size) / SAMPLE_RATE, **row}
        for n, row in found.items()
    ]


def _recognize(recognizer, settings, wavs, text, speaker):
    """What is recognized in each of some waveforms, ``(B, T)``."""
    number = len(wavs)
    try:
        posteriors, confidences, _, words = recognizer.classify_batch(
            wavs, texts=[text] * number, speakers=[speaker] * number
        )
    except (torch.OutOfMemoryError, ValueError) as error:
        raise UploadError(
            f"The recording is not recognized: {error}"
        ) from error
    if not confidences.isfinite().all():
        raise UploadError(
            "The recording gives no probabilities: its samples are far outside "
            "of -1 to 1, perhaps."
        )
    least = settings.abstain_below
    if least is None:
        least = recognizer.hparams.abstain_below
    found = []
    for row, confidence, word in zip(
        posteriors.tolist(), confidences.tolist(), words, strict=True
    ):
        posterior = dict(zip(recognizer.hparams.labels, row, strict=True))
        abstained = confidence < least
        label = None if abstained else word
        found.append(_answered(posterior, label, confidence, abstained))
    return found


def _answered(posteriors, label, confidence, abstained):
    return {
        "posteriors": posteriors,
        "label": label,
        "confidence": confidence,
        "abstained": abstained,
    }


def _samples(path, max_seconds):
    if not path:
        raise UploadError("There is no recording: upload one, or record it.")
    if not Path(path).is_file():
        raise UploadError(
            "The recording is not here any more, since none is kept for long: "
            "send it again."
        )
    try:
        return read_recording(path, max_seconds)
    except AudioError as error:
        message = str(error).replace(str(path), "The recording")
        raise UploadError(message) from error


def _check_length(what, value, most):
    if len(value) > most:
        raise UploadError(
            f"The {what} has {len(value):,} characters; {most:,} are the most "
            "that are taken here."
        )
