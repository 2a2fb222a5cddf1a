"""A corpus small enough to train on in a test: tones and two words a class."""

import io
from pathlib import Path

import numpy as np
import soundfile

from emoq_modules.dataio.prepare import Utterance, is_prepared, write_manifests

WORDS = {"angry": "furious stop", "happy": "great yes", "sad": "sorry no"}
SIZES = {"valid": 6, "test": 9}


def prepare_tiny(data_folder, save_folder, labels, train_size=21):
    """Writes the corpus and its manifests; the pitch and the words tell."""
    settings = {
        "corpus": "tiny",
        "data_folder": str(data_folder),
        "train_size": train_size,
    }
    if is_prepared(save_folder, settings):
        return
    folder = Path(data_folder)
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, size in {"train": train_size, **SIZES}.items():
        splits[split] = []
        for index in range(size):
            emotion = labels[index % len(labels)]
            name = f"{split}{index:02d}"
            rng = np.random.default_rng([len(split), index])
            seconds = 0.3 + 0.2 * rng.random()
            times = np.arange(round(16000 * seconds)) / 16000
            pitch = 150 * (1 + labels.index(emotion)) + 20 * rng.random()
            wave = 0.3 * np.sin(2 * np.pi * pitch * times)
            wave += 0.01 * rng.standard_normal(len(times))
            sound = io.BytesIO()
            soundfile.write(sound, wave, 16000, format="WAV")
            (folder / f"{name}.wav").write_bytes(sound.getvalue())
            word = rng.choice(WORDS[emotion].split())
            splits[split].append(
                Utterance(
                    id=name,
                    wav=f"{{data_root}}/{name}.wav",
                    duration=len(times) / 16000,
                    speaker=f"{split} speaker",
                    session=split,
                    dialogue=f"{split} dialogue",
                    turn=index,
                    text=f"{word} he said",
                    emotion=emotion,
                )
            )
    write_manifests(save_folder, splits, labels, settings)
