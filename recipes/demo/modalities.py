"""Shows on the demo corpus that EmoQ uses the voice and the words.

    python recipes/demo/modalities.py

trains the whole system three times on a CPU: on the voice alone, on the words
alone, on both. Exits with 1 if both together are not at least 8 points of UA
above the better single one.
"""

import subprocess
import sys
from pathlib import Path

from emoq_modules.evaluation.results import read_predictions

ROOT = Path(__file__).parents[2]
RESULTS = "results"
VARIANTS = {
    "voice alone": "emoqformer_audio",
    "words alone": "emoqformer_text",
    "both": "emoq",
}
ENOUGH = 8.0


def main():
    """Trains what has not been trained yet, and prints UA of each."""
    measured = {}
    for name, variant in VARIANTS.items():
        presets = ["hparams/presets/offline.yaml", "recipes/demo/demo.yaml"]
        if variant != "emoq":
            presets.append(f"hparams/presets/{variant}.yaml")
        command = [sys.executable, "train.py", "hparams/emoq_stage2.yaml"]
        for preset in presets:
            command += ["--preset", preset]
        folder = ROOT / RESULTS / "demo" / variant / "fold1-seed1234/stage2"
        if not (folder / "results.json").exists():
            subprocess.run(
                [*command, "--results_folder", RESULTS], cwd=ROOT, check=True
            )
        measured[name] = read_predictions(folder).summarize("UA")
    gain = measured["both"] - max(
        measured["voice alone"], measured["words alone"]
    )
    print()
    for name, value in measured.items():
        print(f"{name:<12} UA {value:5.1f}")
    print(f"{'gain':<12}    {gain:5.1f}")
    return 0 if gain >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
