"""A linear probe of an audio encoder: which layer tells emotions, and how well.

Logistic regression on the time mean of the frames of each layer, on a corpus'
own folds: what EmoQ makes of the same frames should not be below it.
"""

import re
import sys
import time
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from ruamel.yaml import YAML
from speechbrain.utils.distributed import infer_device
from tqdm import tqdm

from emoq_modules.dataio.audio import read_audio
from emoq_modules.dataio.feature_extraction import extract_features
from emoq_modules.dataio.feature_store import FeatureStore
from emoq_modules.dataio.files import write_atomically
from emoq_modules.errors import ConfigurationError
from emoq_modules.evaluation.metrics import EmotionStats, confusion_metrics
from emoq_modules.evaluation.results import read_predictions, write_results
from emoq_modules.inference.recognizer_folder import SETTINGS_FILE
from emoq_modules.lobes.audio_encoder import FrozenEncoder
from emoq_modules.training.configuration import load_hparams
from emoq_modules.training.run_data import read_corpus
from emoq_modules.training.run_folder import check_settings

# Inverse strengths of the regularization; the least change the weights most.
STRENGTHS = (0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class LayerScore:
    """The best regression of a layer, by its UA on validation, in percent."""

    layer: int
    strength: float
    valid_UA: float


class _PooledFrames(FrozenEncoder):
    """Mean and deviation over time of any encoder's frames, as one layer."""

    num_layers = 1

    def __init__(self, encoder):
        identity = {"class": "PooledFrames", "frames": encoder.identity}
        super().__init__(2 * encoder.dim, identity)
        self.encoder = encoder

    def encode(self, wavs, samples):
        return [
            torch.cat([frames.mean(0), frames.std(0, correction=0)])[None]
            for frames in self.encoder.encode(wavs, samples)
        ]


def encoder_yaml(hparams_yaml):
    """The YAML of the encoder that a probe of an experiment takes.

    Of a ``HuggingFaceEncoder`` that of all its layers, each frame normalized;
    any other as it is. None where the experiment has none.
    """
    node = YAML().load(hparams_yaml).get("audio_encoder")
    if node is None:
        return None
    name = r"^audio_encoder: !new:\S*\b(HuggingFace|LayerMean)Encoder\b"
    if not re.match(name, _dumped(node)):
        return _dumped(node)
    known = ("source", "revision", "save_path")
    for key in [key for key in node if key not in known]:
        del node[key]
    node["frame_norm"] = True
    mean = "audio_encoder: !new:emoq_modules.LayerMeanEncoder"
    return re.sub(name, mean, _dumped(node))


def probe_variant(hparams_yaml):
    """The variant that a probe's results are of: it names the encoder.

    ConfigurationError where the experiment has none.
    """
    text = encoder_yaml(hparams_yaml)
    if text is None:
        raise ConfigurationError(
            "audio_encoder is null: there is nothing to probe."
        )
    node = YAML().load(text)["audio_encoder"]
    name = re.match(r"\S+ !\w+:\S*?(\w+)\s", text)[1]  # its class
    if isinstance(node, dict) and "source" in node:
        name = node["source"]
    if isinstance(name, dict):
        name = name["model_type"]
    return f"probe-{Path(name).name}"


def _dumped(node):
    text = StringIO()
    YAML().dump({"audio_encoder": node}, text)
    return text.getvalue()


def probe_layers(runs, run_opts=None, command=()):
    """Probes the encoder of an experiment on the folds of its corpus.

    ``runs`` are what ``plan_runs`` gives for stage 1; ``command`` is what to
    type for the same again. One layer is chosen for the whole corpus, and the
    strength of the regularization with it, by UA on the validation utterances
    of all folds; it alone is tested. Each fold's results are written as those
    of a stage are. Returns the ``LayerScore`` of each layer, the best of them,
    and the ``EmotionStats`` of each fold's test utterances, by folder.
    """
    started = time.time()
    for run in runs:
        check_settings(run)
    folds = [read_corpus(run.hparams)[0] for run in runs]
    first, labels = runs[0].hparams, runs[0].hparams["labels"]
    encoder = load_hparams(encoder_yaml(runs[0].hparams_yaml))["audio_encoder"]
    if encoder.num_layers is None:
        encoder = _PooledFrames(encoder)
    rows = _layer_rows(encoder, folds, first, run_opts or {})
    scores = [
        _best_of_layer(layer, rows, folds, labels)
        for layer in tqdm(range(encoder.num_layers), "layers", disable=None)
    ]
    best = max(scores, key=lambda score: score.valid_UA)
    seconds = (time.time() - started) / len(runs)
    for run, fold in zip(runs, folds, strict=True):
        chosen = best.layer, best.strength
        valid, test = _regress(fold, rows, *chosen, labels, "valid", "test")
        described = ("corpus", "variant", "fold", "stage", "seed")
        info = {key: run.hparams[key] for key in described}
        info |= {"layer": best.layer, "strength": best.strength}
        info |= {"encoder": encoder.identity, "command": list(command)}
        info |= {"train_utterances": len(fold["train"])}
        run.folder.mkdir(parents=True, exist_ok=True)
        settings = run.folder / SETTINGS_FILE
        write_atomically(settings, run.hparams_yaml.encode())
        info |= {"seconds": round(seconds, 1)}
        write_results(run.folder, test, info, valid_stats=valid)
    tested = {run.folder: read_predictions(run.folder) for run in runs}
    return scores, best, tested


def _layer_rows(encoder, folds, hparams, run_opts):
    """Rows ``(num_layers, dim)`` of each utterance, by its audio file."""
    utterances = {
        row["wav"]: row
        for fold in folds
        for split in fold.values()
        for row in split.values()
    }
    default = Path(hparams["results_folder"], "feature_store")
    store = FeatureStore(
        hparams["feature_store"] or default,
        encoder.identity,
        hparams["store_precision"],
    )
    extract_features(
        list(utterances.values()),
        encoder,
        store,
        read_audio,
        device=run_opts.get("device") or infer_device(),
        progressbar=sys.stderr.isatty(),
    )
    return {wav: store.load(wav).numpy() for wav in utterances}


def _best_of_layer(layer, rows, folds, labels):
    """A layer's score at the strength that is best on validation."""
    scores = []
    for strength in STRENGTHS:
        counts = [
            stats.summarize("confusion")
            for fold in folds
            for stats in _regress(fold, rows, layer, strength, labels, "valid")
        ]
        # Counts are added, as an utterance may validate in several folds.
        found = confusion_metrics(np.sum(counts, axis=0))["UA"]
        scores.append(LayerScore(layer, strength, float(found)))
    return max(scores, key=lambda score: score.valid_UA)


def _regress(fold, rows, layer, strength, labels, *splits):
    """``EmotionStats`` of some splits of a fold, trained on its ``train``."""
    from sklearn.linear_model import LogisticRegression  # takes a second
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(
        C=strength, class_weight="balanced", max_iter=1000
    )
    model = make_pipeline(StandardScaler(), regression)
    for split in ("train", *splits):
        utterances = fold[split].values()
        inputs = np.stack([rows[row["wav"]][layer] for row in utterances])
        targets = [labels.index(row["emotion"]) for row in utterances]
        if split == "train":
            model.fit(inputs, targets)
            continue
        posteriors = np.zeros((len(inputs), len(labels)))
        # A class may be lacking in training.
        posteriors[:, regression.classes_] = model.predict_proba(inputs)
        stats = EmotionStats(labels)
        stats.append(
            list(fold[split]),
            torch.from_numpy(posteriors),
            torch.tensor(targets),
            [row["dialogue"] for row in utterances],
        )
        stats.locate(fold[split])
        yield stats
