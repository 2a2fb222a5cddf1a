"""Where somebody speaks, by SpeechBrain's voice activity detection."""

import math
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np

from emoq_modules.dataio.recordings import write_wav
from emoq_modules.lobes.backbones import local_folder


def speech_spans(vad, path, device="cpu", longest_s=30.0):
    """Start and end, in seconds, of the parts of a recording with speech.

    ``vad`` is one of SpeechBrain's, or what ``load_vad`` takes; parts longer
    than ``longest_s`` are cut into equal ones. Raises ``BackboneError`` if the
    model is not to be had, and ``AudioError`` if the file is missing, no audio
    or damaged.
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
    """Loads a ``speechbrain.inference.VAD.VAD``, whose YAML is executed.

    ``source`` is a local folder, or a name on the Hugging Face hub, such as
    ``speechbrain/vad-crdnn-libriparty``.
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
