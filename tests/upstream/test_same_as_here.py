"""The contribution to SpeechBrain computes what EmoQ computes here."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import speechbrain
import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

import train
from emoq_modules.evaluation.results import read_predictions
from emoq_modules.lobes.text_encoder import bert_names
from emoq_modules.training.brain import EmoQBrain
from tests.conftest import ROOT
from upstream.lay import BRANCHES, HERE as CONTRIBUTION, files_of, git

HERE = ROOT / "tests/upstream"
SPLITS = ("train", "valid", "test")
RECIPE = "recipes/MELD/emotion_recognition"


def overlay(folder):
    """Lays the contribution over a copy of the SpeechBrain that is here."""
    installed = Path(speechbrain.__file__).parent
    shutil.copytree(installed, folder / "speechbrain")
    parts = [CONTRIBUTION / x for parts in BRANCHES.values() for x in parts]
    for part in parts:
        for name in files_of(part):
            if name.suffix == ".diff" and name.parts[0] == "speechbrain":
                git(folder, "apply", "-C1", part / name)
            elif name.suffix != ".diff":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(part / name, folder / name, follow_symlinks=False)


def build_hubert(folder):
    """A HuBERT of random weights, whose waveforms come as they are."""
    config = HubertConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        HubertModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)


def translate(state):
    """Names and shapes of EmoQ's weights as the contribution has them."""
    translated = {}
    depth = 1 + max(
        int(found[1])
        for found in (re.match(r"fusion\.layers\.(\d+)", n) for n in state)
        if found
    )
    berts = bert_names([n.removeprefix("fusion.") for n in state])
    for name, value in state.items():
        own = name.removeprefix("fusion.")
        layer, _, rest = own.removeprefix("layers.").partition(".")
        if name.startswith("head."):
            own = name.replace("head.", "classifier.")
        elif name.startswith("decoder.projector"):
            own = name
        elif name.startswith("decoder.llm"):
            if "lora_" not in name:
                continue
            own = name.replace(
                "decoder.llm.", "decoder.llm.adapted_model.model."
            )
            own = own.replace("lora_A.default", "adapter_down_proj")
            own = own.replace("lora_B.default", "adapter_up_proj")
        elif rest.startswith("query_output") and int(layer) < depth - 1:
            own = berts[own].removeprefix(f"encoder.layer.{layer}.")
            part = "01"[own.startswith("output")]
            own = f"query_feed_forward.{layer}.{part}.{own.split('.', 1)[1]}"
            own = f"emoq_former.{own}"
        elif rest.startswith("cross_attention"):
            _, module, parameter = rest.split(".")
            own = {
                "norm": f"cross_norm.{layer}.{parameter}",
                "output": f"cross_attention.{layer}.att.out_proj.{parameter}",
            }.get(module, f"cross_attention.{layer}.att.in_proj_{parameter}")
            own = f"emoq_former.{own}"
            if module in ("query", "key", "value"):
                before = translated.get(
                    own, value.new_zeros(0, *value.shape[1:])
                )
                value = torch.cat([before, value])
        elif own in berts:
            own = f"emoq_former.model.{berts[own]}"
        else:
            own = own.replace("pooling.score", "pooling_score")
            own = f"emoq_former.{own}"
        translated[own] = value
    return translated


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Both stages as they train here: weights at the start, and losses."""
    results = tmp_path_factory.mktemp("ours")
    build_hubert(results / "data/hubert")
    runs = []

    def on_fit_start(brain):
        state = {k: v.clone() for k, v in brain.modules.state_dict().items()}
        runs.append((state, []))
        start(brain)

    def fit_batch(brain, batch):
        loss = fit(brain, batch)
        runs[-1][1].append(float(loss))
        return loss

    start, fit = EmoQBrain.on_fit_start, EmoQBrain.fit_batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmoQBrain, "on_fit_start", on_fit_start)
        patch.setattr(EmoQBrain, "fit_batch", fit_batch)
        presets = ("tests/tiny.yaml", "tests/without_dropout.yaml")
        train.main(
            [
                "hparams/emoq_stage2.yaml",
                *(f"--preset={p}" for p in (*presets, HERE / "same.yaml")),
                f"--results_folder={results}",
            ]
        )
    return results, runs


def write_manifests(results, folder):
    """The manifests of SpeechBrain's recipes."""
    for split in SPLITS:
        own = results / f"tiny/manifests/fold1/{split}.json"
        rows = json.loads(own.read_text())
        (folder / f"{split}.json").write_text(
            json.dumps(
                {
                    utterance: {
                        "wav": row["wav"],
                        "length": row["duration"],
                        "emo": row["emotion"],
                        "words": row["text"],
                        "speaker": row["speaker"],
                    }
                    for utterance, row in rows.items()
                }
            )
        )


@pytest.fixture(scope="module")
def theirs(ours, tmp_path_factory):
    """Both stages as SpeechBrain's recipe trains them from these weights."""
    results, runs = ours
    root = tmp_path_factory.mktemp("theirs")
    overlay(root)
    write_manifests(results, root)
    backbones = results / "tiny/emoq/fold1-seed1234"
    options = {
        "data_folder": results / "data",
        "data_root": results / "data",
        "skip_prep": True,
        **{f"{x}_annotation": root / f"{x}.json" for x in SPLITS},
        "frames_folder": root / "frames",
        "hubert_hub": results / "data/hubert",
        "encoder_dim": 24,
        "emotions": "[angry, happy, sad]",
        "text_hub": backbones / "stage1/backbones/text_encoder",
        "text_dim": 16,
        "num_queries": 3,
        "pooling_heads": 2,
        "batch_size": 12,
        "train_dataloader_opts": "{shuffle: False, num_workers: 0}",
        "test_dataloader_opts": "{num_workers: 0}",
        "number_of_epochs": 3,
        "patience": 10,
        "lr": 0.01,
        "precision": "fp32",
        "eval_precision": "fp32",
        "device": "cpu",
    }
    own = [
        {"classifier_dropout": 0.0},
        {
            "emoq_former_file": root / "stage1/emoq_former.ckpt",
            "emotion_words": "[angry, happy, sad]",
            "llm_hub": backbones / "stage2/backbones/llm",
            "llm_dtype": "float32",
            "lora_dropout": 0.0,
        },
    ]
    for number, (state, _) in enumerate(runs, start=1):
        weights = translate(state)
        if number == 2:  # its EmoQ-Former is that of its own stage 1
            weights = {
                name: weight
                for name, weight in weights.items()
                if not name.startswith("emoq_former.")
            }
        torch.save(weights, root / "weights.ckpt")
        folder = root / f"stage{number}"
        given = options | own[number - 1] | {"output_folder": folder}
        run(
            root,
            *(HERE / "record.py", root / "weights.ckpt"),
            *(root / f"losses{number}.json", "train_with_emoq.py"),
            f"hparams/emoq_stage{number}.yaml",
            *(f"--{key}={value}" for key, value in given.items()),
        )
    return root


def run(root, *arguments, cwd=None):
    """Runs Python where the recipe is, on the SpeechBrain laid over."""
    environment = {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd or root / RECIPE,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout


def read_rows(root, stage):
    """The predictions that the recipe has written, by utterance."""
    with open(root / f"stage{stage}/predictions.csv", encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("stage", [1, 2])
def test_every_loss_is_the_same(ours, theirs, stage):
    losses = ours[1][stage - 1][1]
    found = json.loads((theirs / f"losses{stage}.json").read_text())
    assert len(losses) == 6
    assert found == pytest.approx(losses, abs=1e-5)


@pytest.mark.parametrize("stage", [1, 2])
def test_posteriors_are_the_same(ours, theirs, stage):
    folder = ours[0] / f"tiny/emoq/fold1-seed1234/stage{stage}"
    stats, rows = read_predictions(folder), read_rows(theirs, stage)
    assert set(rows) == set(stats.ids)
    for utterance, own in zip(stats.ids, stats.posteriors, strict=True):
        found = [float(rows[utterance][label]) for label in stats.labels]
        assert found == pytest.approx(list(map(float, own)), abs=1e-5)


def test_the_folder_of_stage_2_is_a_recognizer_anywhere(ours, theirs, tmp_path):
    moved = shutil.copytree(theirs / "stage2", tmp_path / "moved")
    shutil.rmtree(moved / "save")
    words = json.loads((theirs / "test.json").read_text())
    utterance = "test04"
    printed = run(
        theirs,
        "-c",
        f"""
from speechbrain.inference.interfaces import foreign_class
recognizer = foreign_class(
    source="{moved}",
    pymodule_file="train_with_emoq.py",
    classname="EmotionRecognizer",
    savedir="{tmp_path}/fetched",
    run_opts={{"device": "cpu", "precision": "fp32"}},
)
posteriors, score, emotions = recognizer.classify_file(
    "{ours[0]}/data/{utterance}.wav",
    "{words[utterance]["words"]}",
    "{words[utterance]["speaker"]}",
)
print(*posteriors[0].tolist(), emotions[0])
""",
        cwd=tmp_path,
    )
    *found, emotion = printed.splitlines()[-1].split()
    row = read_rows(theirs, 2)[utterance]
    expected = [float(row[label]) for label in ("angry", "happy", "sad")]
    assert list(map(float, found)) == pytest.approx(expected, abs=1e-5)
    assert emotion == row["prediction"]
