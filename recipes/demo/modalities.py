"""Shows on the demo corpus that EmoQ uses the voice and the words.

    python recipes/demo/modalities.py

trains the whole system four times on a CPU: on the voice alone, on the words
alone, on both, and on both with half of the transcripts left out
(`text_dropout`). The last two are tested without transcripts too. Exits with 1
if both together are not at least 8 points of UA above the better single one, or
if, without transcripts, the last is more than 3 points below the voice alone.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch

from emoq_modules import EmotionRecognizer, EmotionStats
from emoq_modules.evaluation.results import read_predictions

ROOT = Path(__file__).parents[2]
RESULTS = "results"
VARIANTS = {
    "voice alone": "emoqformer_audio",
    "words alone": "emoqformer_text",
    "both": "emoq",
    "some words left out": "text_dropout",
}
ENOUGH, LITTLE = 8.0, 3.0


def main():
    """Trains what has not been trained yet, and prints UA of each."""
    measured = {}
    for name, variant in VARIANTS.items():
        presets = ["hparams/presets/offline.yaml", "recipes/demo/demo.yaml"]
        if variant.startswith("emoqformer"):
            presets.append(f"hparams/presets/{variant}.yaml")
        command = [sys.executable, "train.py", "hparams/emoq_stage2.yaml"]
        for preset in presets:
            command += ["--preset", preset]
        if variant == "text_dropout":
            command += ["--variant", variant, "--text_dropout", "0.5"]
        folder = ROOT / RESULTS / "demo" / variant / "fold1-seed1234/stage2"
        if not (folder / "results.json").exists():
            subprocess.run(
                [*command, "--results_folder", RESULTS], cwd=ROOT, check=True
            )
        measured[name] = read_predictions(folder).summarize("UA")
        if not variant.startswith("emoqformer"):
            measured[f"{name}, tested without"] = _without_words(folder)
    gain = measured["both"] - max(
        measured["voice alone"], measured["words alone"]
    )
    silent = measured["some words left out, tested without"]
    loss = measured["voice alone"] - silent
    print()
    for name, value in measured.items():
        print(f"{name:<35} UA {value:5.1f}")
    print(f"{'gain of both':<35}    {gain:5.1f}")
    print(f"{'loss without words':<35}    {loss:5.1f}")
    return 0 if gain >= ENOUGH and loss <= LITTLE else 1


def _without_words(folder):
    """UA on the test utterances' recordings alone."""
    corpus = ROOT / RESULTS / "demo"
    manifest = corpus / "manifests/fold1/test.json"
    rows = json.loads(manifest.read_text(encoding="utf-8"))
    root = str(corpus / "corpus")
    recognizer = EmotionRecognizer.from_hparams(folder / "recognizer")
    answers = recognizer.recognize(
        [row["wav"].replace("{data_root}", root) for row in rows.values()]
    )
    labels = recognizer.hparams.labels
    stats = EmotionStats(labels)
    stats.append(
        list(rows),
        torch.tensor([list(answer.posteriors.values()) for answer in answers]),
        torch.tensor([labels.index(row["emotion"]) for row in rows.values()]),
    )
    return stats.summarize("UA")


if __name__ == "__main__":
    sys.exit(main())
