"""From manifests to batches: audio or stored frames, tokens and labels."""

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from torchaudio.functional import resample

from emoq_modules.audio_files import SAMPLE_RATE, AudioError


def read_audio(path):
    """Reads any file libsndfile can, as 16 kHz mono.

    Arguments
    ---------
    path : str
        WAV, FLAC, ... of any rate and number of channels.

    Returns
    -------
    torch.Tensor
        Samples in [-1, 1], ``(T,)``, float32.

    Raises
    ------
    AudioError
        If the file is missing, is no audio, is shorter than its header says,
        holds no sample, or samples that are not finite.

    Example
    -------
    >>> path = getfixture("tmp_path") / "stereo.wav"
    >>> soundfile.write(path, np.zeros((44100, 2)), 44100)
    >>> read_audio(path).shape
    torch.Size([16000])
    """
    try:
        with soundfile.SoundFile(path) as file:
            rate, expected = file.samplerate, file.frames
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path} cannot be read as audio ({error}).") from None
    if not len(samples):
        raise AudioError(f"{path} has 0 samples; leave it out of the corpus.")
    if len(samples) < expected:
        raise AudioError(
            f"{path} is truncated: {len(samples)} of {expected} samples. "
            "Copy it again from the corpus."
        )
    if not np.isfinite(samples).all():
        raise AudioError(f"{path} holds samples that are not finite numbers.")
    audio = torch.from_numpy(samples).mean(dim=1)
    return resample(audio, rate, SAMPLE_RATE) if rate != SAMPLE_RATE else audio


def build_datasets(manifests, labels, audio, tokenizer, max_text_tokens=256):
    """Makes SpeechBrain data sets of manifests.

    Arguments
    ---------
    manifests : dict
        Rows of each split, as ``read_manifest`` gives them.
    labels : list of str
        The emotion words, in the order of the classes.
    audio : callable | None
        Gives what ``audio`` holds from an utterance's path: its stored frames
        ``(T, audio_dim)``, or its waveform ``(T,)``. None leaves audio out.
    tokenizer : transformers.PreTrainedTokenizerFast | None
        That of the text encoder; None leaves tokens out.
    max_text_tokens : int
        A longer transcript is cut at its end.

    Returns
    -------
    dict
        A ``DynamicItemDataset`` for each split, whose items have ``id``,
        ``text``, ``speaker``, ``label`` (class index), ``audio`` and
        ``tokens``.
    """

    def tokens(text):
        ids = tokenizer(text, truncation=True, max_length=max_text_tokens)
        return torch.tensor(ids["input_ids"])

    items = [{"func": labels.index, "takes": "emotion", "provides": "label"}]
    if audio is not None:
        items += [{"func": audio, "takes": "wav", "provides": "audio"}]
    if tokenizer is not None:
        items += [{"func": tokens, "takes": "text", "provides": "tokens"}]
    outputs = ["id", "text", "speaker", *(item["provides"] for item in items)]
    return {
        split: DynamicItemDataset(
            rows, dynamic_items=items, output_keys=outputs
        )
        for split, rows in manifests.items()
    }


def training_labels(manifest, labels):
    """Class index of every utterance in a manifest, for class weights.

    Arguments
    ---------
    manifest : str
        A ``train.json``.
    labels : list of str
        The emotion words, in the order of the classes.

    Returns
    -------
    list of int
    """
    rows = json.loads(Path(manifest).read_text(encoding="utf-8"))
    return [labels.index(row["emotion"]) for row in rows.values()]
