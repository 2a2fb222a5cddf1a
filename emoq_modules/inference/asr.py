"""Speech recognition for recordings whose words nobody has written down.

Any model of SpeechBrain's or transformers' will do. What is recognized wrongly
misleads EmoQ as a wrong transcript does.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from ruamel.yaml import YAML

from emoq_modules.dataio.audio import SAMPLE_RATE
from emoq_modules.errors import BackboneError
from emoq_modules.lobes.backbones import local_folder

_SPEECHBRAIN = "hyperparams.yaml"
# Longer sound than Whisper hears at once is heard in overlapping parts.
_CHUNK_S = 30


def load_transcriber(source, device="cpu"):
    """Makes a function that transcribes.

    Arguments
    ---------
    source : str | Path | object
        A local folder, or a name on the Hugging Face hub, of a SpeechBrain
        model for ``EncoderASR``, ``EncoderDecoderASR`` or ``WhisperASR``, or
        of a transformers model for the pipeline
        ``automatic-speech-recognition``; or one of these, already loaded; or
        a function as is returned here. As with any SpeechBrain model, the
        YAML in the folder is executed.
    device : str
        Where to compute.

    Returns
    -------
    callable
        From samples at 16 kHz, ``(T,)``, to the words.

    Raises
    ------
    BackboneError
        If the model is neither a folder, nor cached, nor reachable, or is
        of another kind.

    Example
    -------
    >>> load_transcriber(lambda samples: "Oh no!")(torch.zeros(16000))
    'Oh no!'
    """
    if isinstance(source, str | Path):
        source = _load(source, device)
    if hasattr(source, "transcribe_batch"):
        return _of_speechbrain(source)
    # transformers' own name for what a pipeline is for
    if getattr(source, "task", None) == "automatic-speech-recognition":
        return _of_transformers(source)
    if callable(source):
        return source
    raise BackboneError(
        f"{source!r} transcribes nothing: give a model's name or folder."
    )


def with_texts(pieces, transcribe):
    """Gives the pieces whose recording has no text that which was heard.

    Arguments
    ---------
    pieces : iterable of Piece
        As ``recognition.Recognizing`` takes them.
    transcribe : callable
        As of ``load_transcriber``.

    Yields
    ------
    Piece
    """
    for piece in pieces:
        if piece.samples is not None and not piece.recording.text:
            text = transcribe(piece.samples)
            piece.recording = replace(piece.recording, text=text)
        yield piece


# One by one: in a batch, padding changes what many models hear.


def _of_speechbrain(model):
    def transcribe(samples):
        with torch.inference_mode():
            words, _ = model.transcribe_batch(
                samples[None].to(model.device),
                torch.ones(1, device=model.device),
            )
        # WhisperASR splits what it normalizes.
        return words[0] if isinstance(words[0], str) else " ".join(words[0])

    return transcribe


def _of_transformers(pipeline):
    def transcribe(samples):
        sound = {"raw": samples.numpy(), "sampling_rate": SAMPLE_RATE}
        is_long = len(samples) > _CHUNK_S * SAMPLE_RATE
        options = {"chunk_length_s": _CHUNK_S} if is_long else {}
        return pipeline(sound, **options)["text"].strip()

    return transcribe


def _load(source, device):
    folder = _folder(source)
    if (folder / _SPEECHBRAIN).is_file():
        return _load_speechbrain(folder, device)
    folder = local_folder(folder)  # says what is missing of transformers' files
    values = json.loads((Path(folder) / "config.json").read_bytes())
    from transformers import pipeline  # takes seconds to import

    try:
        return pipeline(
            "automatic-speech-recognition", model=folder, device=device
        )
    except (ValueError, OSError, KeyError) as error:
        raise BackboneError(
            f"{source}, a model of the kind {values.get('model_type')!r}, is "
            f"none that transcribes, or lacks a part ({error})."
        ) from error


def _folder(source):
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(local_folder(source))  # if it is transformers'
    except BackboneError:
        return Path(
            local_folder(
                source, weights=False, needs=(_SPEECHBRAIN,), whole=True
            )
        )


def _load_speechbrain(folder, device):
    from speechbrain.inference.ASR import (
        EncoderASR,
        EncoderDecoderASR,
        WhisperASR,
    )

    # Read, not executed: which interface has what it needs?
    tree = YAML().load((folder / _SPEECHBRAIN).read_text(encoding="utf-8"))
    for interface in (WhisperASR, EncoderASR, EncoderDecoderASR):
        if all(key in tree for key in interface.HPARAMS_NEEDED) and all(
            name in tree.get("modules", ()) for name in interface.MODULES_NEEDED
        ):
            return interface.from_hparams(
                str(folder),
                overrides={"pretrained_path": str(folder)},
                overrides_must_match=False,
                run_opts={"device": device},
            )
    raise BackboneError(
        f"The SpeechBrain model in {folder} is none of EncoderASR, "
        "EncoderDecoderASR and WhisperASR."
    )
