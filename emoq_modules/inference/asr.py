"""Speech recognition for recordings whose words nobody has written down.

Any model of transformers' will do, and any function. What is recognized wrongly
misleads EmoQ as a wrong transcript does, so that what cannot be right is left
out: the voice alone decides then.
"""

import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from speechbrain.utils.logger import get_logger

from emoq_modules.dataio.audio import SAMPLE_RATE
from emoq_modules.dataio.recordings import SILENCE_DBFS, rms_dbfs
from emoq_modules.errors import BackboneError
from emoq_modules.lobes.backbones import local_folder

logger = get_logger(__name__)

_TASK = "automatic-speech-recognition"
# Longer sound than Whisper hears at once is heard in overlapping parts.
_CHUNK_S = 30
# OpenAI's decoder takes a text for a loop above, and a sound for none of
# speech; transformers compresses tokens, which takes a threshold of its own.
_MAX_COMPRESSION = 2.4
_NO_SPEECH = 0.6
_FALLBACKS = {
    "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "compression_ratio_threshold": 1.35,
    "logprob_threshold": -1.0,
    "condition_on_prev_tokens": False,  # a loop would go on in the next part
}


def load_transcriber(source, device="cpu", language=None):
    """Makes a function that transcribes: from samples at 16 kHz to the words.

    ``source`` is a local folder, or a name on the Hugging Face hub, of a model
    for transformers' pipeline ``automatic-speech-recognition``; or that
    pipeline; or such a function around any other model. A Whisper that is given
    by its name falls back as OpenAI's decoder does where it loops or is unsure,
    and hears ``language``, a code or name (``de``, ``german``); None lets it
    find out. ``BackboneError`` if the model is not to be had, is of another
    kind, or cannot be given that language.
    """
    if isinstance(source, str | Path):
        return _load(source, device, language)
    if language is not None:
        raise BackboneError(
            f"The language {language!r} is for a Whisper that is given by its "
            "name or folder; a pipeline or function has its own options."
        )
    # transformers' own name for what a pipeline is for
    if getattr(source, "task", None) == _TASK:
        return partial(_transcribe, source)
    if callable(source):
        return source
    raise BackboneError(
        f"{source!r} transcribes nothing: give a model's name or folder."
    )


def with_texts(segments, transcribe):
    """Gives the segments, with what was heard where a recording has no text.

    They are heard one by one: padding changes what many models hear. What
    repeats itself, or comes from silence, is left out with a warning.
    """
    for segment in segments:
        recording = segment.recording
        if segment.samples is not None and not recording.text:
            text, fault = _heard(transcribe, segment.samples)
            if fault:
                logger.warning(
                    f"{recording.path}, {segment.start:.1f} to "
                    f"{segment.end:.1f} s, gets no transcript: {fault}."
                )
            segment.recording = replace(recording, text=text)
        yield segment


def _heard(transcribe, samples):
    """What was said, and what speaks against it."""
    if rms_dbfs(samples) < SILENCE_DBFS:
        return "", "it is silent"
    text = transcribe(samples)
    if not text:
        return "", "no speech was heard"
    content = text.encode()
    if len(content) > _MAX_COMPRESSION * len(zlib.compress(content)):
        return "", f"what was heard repeats itself ({text[:40]!r}...)"
    return text, None


def _load(source, device, language):
    from transformers import pipeline  # takes seconds to import

    folder = local_folder(source)  # says at once what is missing
    # Half precision, in which many are stored, is slow on a CPU or not there.
    dtype = torch.float32 if torch.device(device).type == "cpu" else "auto"
    try:
        loaded = pipeline(
            *(_TASK, folder),
            device=device,
            dtype=dtype,
            trust_remote_code=False,
        )
    except (ValueError, OSError, KeyError) as error:
        raise BackboneError(
            f"The model in {source} is none that transcribes, or lacks a part "
            f"({error})."
        ) from error
    if loaded.model.config.model_type == "whisper":
        _check_language(language, loaded.model.generation_config, source)
        return partial(_transcribe_by_whisper, loaded, language)
    if language is not None:
        raise BackboneError(
            f"{source} is of the family {loaded.model.config.model_type!r}, "
            "which cannot be given a language; Whisper can."
        )
    return partial(_transcribe, loaded)


def _check_language(language, config, source):
    from transformers.models.whisper.tokenization_whisper import (
        TO_LANGUAGE_CODE,
    )

    if language is None:
        return
    code = TO_LANGUAGE_CODE.get(language.lower(), language.lower())
    if f"<|{code}|>" not in (getattr(config, "lang_to_id", None) or {}):
        raise BackboneError(
            f"{source} knows no language {language!r} to be given: codes are "
            "such as de, names such as german, and Whispers of English alone "
            "take none."
        )


def _transcribe(pipeline, samples):
    sound = {"raw": samples.numpy(), "sampling_rate": SAMPLE_RATE}
    is_long = len(samples) > _CHUNK_S * SAMPLE_RATE
    options = {"chunk_length_s": _CHUNK_S} if is_long else {}
    return pipeline(sound, **options)["text"].strip()


def _transcribe_by_whisper(pipeline, language, samples):
    options = dict(_FALLBACKS)
    if language is not None:
        options |= {"language": language, "task": "transcribe"}
    is_long = len(samples) > _CHUNK_S * SAMPLE_RATE
    if is_long:
        options["no_speech_threshold"] = _NO_SPEECH  # of each part by itself
    elif _no_speech(pipeline, samples) > _NO_SPEECH:
        return ""
    sound = {"raw": samples.numpy(), "sampling_rate": SAMPLE_RATE}
    device = pipeline.device
    devices = [device] if device.type == "cuda" else []
    # Fallbacks draw words: the same for a recording, whatever came before.
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        found = pipeline(
            sound, return_timestamps=is_long, generate_kwargs=options
        )
    return found["text"].strip()


@torch.inference_mode()
def _no_speech(pipeline, samples):
    """Whisper's probability that there is no speech.

    transformers would leave out only what is improbable besides, which "Thank
    you." is not.
    """
    model, config = pipeline.model, pipeline.model.generation_config
    if getattr(config, "no_timestamps_token_id", None) is None:
        return 0.0  # some fine-tunes do not tell what their tokens mean
    features = pipeline.feature_extractor(
        samples.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt"
    ).input_features.to(model.device, model.dtype)
    start = torch.tensor([[config.decoder_start_token_id]], device=model.device)
    logits = model(features, decoder_input_ids=start).logits[0, 0]
    # The token before is Whisper's <|nospeech|>, as transformers has it.
    return logits.float().softmax(0)[config.no_timestamps_token_id - 1].item()
