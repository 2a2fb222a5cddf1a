"""Manifests in the shape of SpeechBrain's for IEMOCAP.

It has the lines of ``create_json`` that docs/reuse.md changes.
"""

import json
import re  # noqa: F401, what the change needs is there upstream

from speechbrain.dataio.dataio import read_audio

SAMPLERATE = 16000


def create_json(wav_list, json_file):
    """Writes the manifest of [path, emotion, gender] of each utterance."""
    json_dict = {}
    for wav_file, emo, _ in wav_list:
        signal = read_audio(wav_file)
        duration = signal.shape[0] / SAMPLERATE

        uttid = wav_file.split("/")[-1][:-4]

        # Create entry for this utterance
        json_dict[uttid] = {
            "wav": wav_file,
            "length": duration,
            "emo": emo,
        }

    with open(json_file, mode="w", encoding="utf-8") as file:
        json.dump(json_dict, file)
