"""Where somebody speaks, by SpeechBrain's voice activity detection."""

import math
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np

from emoq_modules.dataio.recordings import write_wav
from emoq_modules.lobes.backbones import local_folder


def speech_spans(vad, path, device="cpu", longest_s=30.0):
    """Finds the parts of a recording in which there is speech.

    Arguments
    ---------
    vad : str | Path | speechbrain.inference.VAD.VAD
        A local folder, or a name on the Hugging Face hub, of a model for
        ``speechbrain.inference.VAD.VAD``, such as
        ``speechbrain/vad-crdnn-libriparty``, whose YAML is executed; or one
        already loaded.
    path : str or Path
        As of ``audio.read_audio``.
    device : str
        Where to compute.
    longest_s : float
        Longer parts are cut into equal ones.

    Returns
    -------
    list of tuple
        Start and end of each in seconds.

    Raises
    ------
    BackboneError
        If the model is neither a folder, nor cached, nor reachable.
    AudioError
        If the file is missing, no audio, or damaged.
    """
    if isinstance(vad, str | Path):
        vad = load_vad(vad, device)
    with tempfile.TemporaryDirectory() as folder:
        # It reads a file piece by piece, but 16 kHz mono alone.
        wav = Path(folder) / "recording.wav"
        write_wav(path, wav)
        segments = vad.get_speech_segments(str(wav))
    spans = []
    for start, end in segments.tolist():
        number = math.ceil((end - start) / longest_s)
        spans += pairwise(np.linspace(start, end, number + 1).tolist())
    return spans


def load_vad(source, device="cpu"):
    """Loads SpeechBrain's voice activity detection.

    Arguments
    ---------
    source : str or Path
        As ``vad`` of ``speech_spans``.
    device : str
        Where to compute.

    Returns
    -------
    speechbrain.inference.VAD.VAD

    Raises
    ------
    BackboneError
        If the model is neither a folder, nor cached, nor reachable.
    """
    from speechbrain.inference.VAD import VAD

    folder = local_folder(
        source, weights=False, needs=("hyperparams.yaml",), whole=True
    )
    return VAD.from_hparams(
        folder,
        overrides={"pretrained_path": folder},
        overrides_must_match=False,
        run_opts={"device": device},
    )
