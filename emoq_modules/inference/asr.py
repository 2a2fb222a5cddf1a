"""Speech recognition for recordings whose words nobody has written down.

Any model of transformers' will do, and any function. What is recognized wrongly
misleads EmoQ as a wrong transcript does.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from emoq_modules.dataio.audio import SAMPLE_RATE
from emoq_modules.errors import BackboneError
from emoq_modules.lobes.backbones import local_folder

_TASK = "automatic-speech-recognition"
# Longer sound than Whisper hears at once is heard in overlapping parts.
_CHUNK_S = 30


def load_transcriber(source, device="cpu"):
    """Makes a function that transcribes: from samples at 16 kHz to the words.

    ``source`` is a local folder, or a name on the Hugging Face hub, of a model
    for transformers' pipeline ``automatic-speech-recognition``; or that
    pipeline; or such a function around any other model. ``BackboneError`` if it
    is not to be had, or is of another kind.
    """
    if isinstance(source, str | Path):
        source = _load(source, device)
    # transformers' own name for what a pipeline is for
    if getattr(source, "task", None) == _TASK:
        return partial(_transcribe, source)
    if callable(source):
        return source
    raise BackboneError(
        f"{source!r} transcribes nothing: give a model's name or folder."
    )


def _load(source, device):
    from transformers import pipeline  # takes seconds to import

    folder = local_folder(source)  # says at once what is missing
    try:
        return pipeline(_TASK, model=folder, device=device)
    except (ValueError, OSError, KeyError) as error:
        raise BackboneError(
            f"The model in {source} is none that transcribes, or lacks a part "
            f"({error})."
        ) from error


def _transcribe(pipeline, samples):
    sound = {"raw": samples.numpy(), "sampling_rate": SAMPLE_RATE}
    is_long = len(samples) > _CHUNK_S * SAMPLE_RATE
    options = {"chunk_length_s": _CHUNK_S} if is_long else {}
    return pipeline(sound, **options)["text"].strip()


def with_texts(segments, transcribe):
    """Gives the segments, with what was heard where a recording has no text.

    They are heard one by one: padding changes what many models hear.
    """
    for segment in segments:
        if segment.samples is not None and not segment.recording.text:
            text = transcribe(segment.samples)
            segment.recording = replace(segment.recording, text=text)
        yield segment
