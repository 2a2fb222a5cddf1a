"""A probe says which layer of an encoder tells emotions, chosen on validation.

Against scikit-learn by hand, on a corpus of noise in which one layer of three
has been told the classes.
"""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from sklearn.preprocessing import StandardScaler

from emoq_modules.commands.cli import main
from emoq_modules.dataio.prepare import Utterance, write_manifests
from emoq_modules.evaluation.results import pool_results, read_predictions
from emoq_modules.lobes.audio_encoder import FrozenEncoder
from emoq_modules.training.configuration import load_hparams, merge_presets
from emoq_modules.training.probe import encoder_yaml, probe_variant

LABELS = ["angry", "happy", "sad"]
UTTERANCES, DIM, INFORMATIVE = 60, 4, 2
PRESET = """
corpus: noise
labels: [angry, happy, sad]
folds: [1, 2]
data_folder: !ref <results_folder>/data
data_root: !ref <data_folder>
prepare: !name:tests.training.test_probe.prepare_noise
    data_folder: !ref <data_folder>
    save_folder: !ref <manifest_folder>
    labels: !ref <labels>
    fold: !ref <fold>
    turned: TURNED
audio_encoder: !new:tests.training.test_probe.ThreeLayers
feature_store: null
store_precision: fp32
"""


def prepare_noise(data_folder, save_folder, labels, fold, turned):
    """Noise whose first sample is the class; each fold tests one half."""
    Path(data_folder).mkdir(parents=True, exist_ok=True)
    splits = {"train": [], "valid": [], "test": []}
    for index in range(UTTERANCES):
        label = index % len(labels)
        path = f"{data_folder}/{index}.wav"
        noise = np.random.default_rng(index).uniform(-0.5, 0.5, 2000)
        soundfile.write(path, [label / 4, *noise], 16000, subtype="FLOAT")
        split = "valid" if index % 5 < 2 else "train"
        if index // (UTTERANCES // 2) == fold - 1:
            split = "test"
            label = (label + turned) % len(labels)
        splits[split].append(
            Utterance(
                *(f"{index}", path, 2001 / 16000, "a", "s", f"d{index}", 0),
                *("Oh.", labels[label]),
            )
        )
    write_manifests(save_folder, splits, labels, {"corpus": "noise"})


class ThreeLayers(FrozenEncoder):
    """Rows of what an utterance sounds like; one has its class, blurred."""

    num_layers = 3

    def __init__(self):
        super().__init__(DIM, {"class": "ThreeLayers"})

    def encode(self, wavs, samples):
        rows = wavs[:, 1 : 1 + 3 * DIM].unflatten(1, (3, DIM)).clone()
        classes = (4 * wavs[:, 0]).round().long()
        rows[:, INFORMATIVE] += 0.3 * torch.eye(DIM)[classes]
        return [*rows]


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    """Runs the command: its results folder and what it prints."""

    def run(capsys, turned=0):
        folder = tmp_path_factory.mktemp("probe")
        preset = folder / "noise.yaml"
        preset.write_text(PRESET.replace("TURNED", str(turned)))
        words = ["--preset", preset, "--results_folder", folder / "results"]
        assert main(["probe", *map(str, words)]) == 0
        return folder / "results/noise/probe-ThreeLayers", capsys.readouterr()

    return run


def by_hand(results):
    """Targets and posteriors by split, of each layer, strength and fold."""
    found = {}
    for fold in (1, 2):
        data = {}
        for split in ("train", "valid", "test"):
            manifest = results / f"manifests/fold{fold}/{split}.json"
            rows = json.loads(manifest.read_text()).values()
            wavs = [soundfile.read(row["wav"], dtype="float32") for row in rows]
            wavs = torch.from_numpy(np.stack([wav for wav, _ in wavs]))
            layers = torch.stack(ThreeLayers().encode(wavs, None)).numpy()
            targets = [LABELS.index(row["emotion"]) for row in rows]
            data[split] = layers, np.array(targets)
        for layer, strength in product(range(3), (0.01, 0.1, 1, 10)):
            layers, targets = data["train"]
            scaler = StandardScaler().fit(layers[:, layer])
            model = LogisticRegression(
                C=strength, class_weight="balanced", max_iter=1000
            ).fit(scaler.transform(layers[:, layer]), targets)
            for split in ("valid", "test"):
                layers, targets = data[split]
                inputs = scaler.transform(layers[:, layer])
                found[split, layer, strength, fold] = (
                    targets,
                    model.predict_proba(inputs),
                )
    return found


def measure(metric, found, split, layer, strength, **options):
    """A metric over the folds together, in percent."""
    targets, posteriors = (
        np.concatenate(
            [found[split, layer, strength, fold][n] for fold in (1, 2)]
        )
        for n in (0, 1)
    )
    return 100 * metric(targets, posteriors.argmax(axis=1), **options)


def test_numbers_are_scikit_learns(probe, capsys):
    folder, (output, _) = probe(capsys)
    found = by_hand(folder.parent)
    lines, chosen = output.splitlines(), {}
    for layer, line in enumerate(lines[1:4]):
        scores = {
            strength: measure(
                balanced_accuracy_score, found, "valid", layer, strength
            )
            for strength in (0.01, 0.1, 1, 10)
        }
        chosen[layer] = max(scores, key=scores.get)
        expected = [layer, chosen[layer], f"{scores[chosen[layer]]:.1f}"]
        assert line.split() == [*map(str, expected)]
    best = INFORMATIVE, chosen[INFORMATIVE]
    UA = measure(balanced_accuracy_score, found, "test", *best)
    WA = measure(accuracy_score, found, "test", *best)
    WF1 = measure(f1_score, found, "test", *best, average="weighted")
    assert lines[5] == (
        f"best layer 2: UA {UA:.1f}, WA {WA:.1f}, WF1 {WF1:.1f} (test, 60 "
        "utterances, 2 folds)"
    )
    means = []
    for metric in (balanced_accuracy_score, accuracy_score, f1_score):
        options = {"average": "weighted"} if metric is f1_score else {}
        of_folds = [
            100 * metric(targets, posteriors.argmax(axis=1), **options)
            for targets, posteriors in (
                found[("test", *best, fold)] for fold in (1, 2)
            )
        ]
        means.append((np.mean(of_folds), np.std(of_folds, ddof=1)))
    assert lines[6] == "mean of 2 folds: UA {}, WA {}, WF1 {}".format(
        *(f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in means)
    )
    # What is left is what a stage leaves, for reports.
    for fold, split in product((1, 2), ("valid", "test")):
        name = {"valid": "valid_predictions.csv", "test": "predictions.csv"}
        run = folder / f"fold{fold}-seed1234/stage1"
        stats = read_predictions(run / name[split])
        targets, posteriors = found[(split, *best, fold)]
        assert stats.targets == targets.tolist()
        assert set(stats.speakers) == {"a"} and set(stats.sessions) == {"s"}
        np.testing.assert_allclose(
            torch.stack(stats.posteriors), posteriors, atol=1e-5
        )
        results = json.loads((run / "results.json").read_text())
        assert (results["layer"], results["strength"]) == best


def test_choice_does_not_look_at_the_test_set(probe, capsys):
    as_it_is, turned = (probe(capsys, turned) for turned in (0, 1))
    outputs = [output.splitlines() for _, (output, _) in (as_it_is, turned)]
    assert outputs[0][:4] == outputs[1][:4]
    assert all(lines[5].startswith("best layer 2: UA") for lines in outputs)
    UA = [
        pool_results(folder.glob("fold*/stage1")).summarize("UA")
        for folder, _ in (as_it_is, turned)
    ]
    assert UA[0] > 50 > UA[1]


@pytest.mark.parametrize(
    ("keys", "variant", "layers"),
    [
        ("audio_layer: 1\naudio_precision: bf16", "probe-hubert", 3),
        (
            "audio_encoder: !new:emoq_modules.LayerMeanEncoder\n"
            "    source: !ref <audio_source>",
            "probe-hubert",
            3,
        ),
        (
            "audio_encoder: !new:emoq_modules.FbankEncoder\n    n_mels: 20",
            "probe-FbankEncoder",
            None,
        ),
    ],
)
def test_encoder_of_an_experiment_is_probed_layer_by_layer(
    tmp_path, keys, variant, layers
):
    preset = tmp_path / "preset.yaml"
    preset.write_text(
        "data_folder: x\naudio_source: {model_type: hubert, hidden_size: 32, "
        "num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 8, "
        f"conv_dim: [32, 32, 32, 32, 32, 32, 32]}}\n{keys}"
    )
    whole = merge_presets("hparams/emoq_stage1.yaml", [preset])
    assert probe_variant(whole) == variant
    encoder = load_hparams(encoder_yaml(whole))["audio_encoder"]
    assert encoder.num_layers == layers
    assert layers is None or encoder.frame_norm


def test_encoders_have_folders_of_their_own():
    for source in ("facebook/w2v-bert-2.0", "my/folder/"):
        options = f"data_folder: x\naudio_source: {source}"
        whole = merge_presets("hparams/emoq_stage1.yaml", (), options)
        name = source.rstrip("/").split("/")[-1]
        assert probe_variant(whole) == f"probe-{name}"


def test_experiment_without_an_encoder_is_refused(tmp_path, capsys):
    preset = tmp_path / "preset.yaml"
    preset.write_text("audio_encoder: null")
    words = ["--preset", str(preset), "--data_folder", str(tmp_path)]
    assert main(["probe", *words]) == 2
    assert "there is nothing to probe" in capsys.readouterr().err
