"""What docs/reuse.md shows trains, on a small recipe of that shape."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from emoq_modules.lobes.small_backbones import build_llm, build_text_encoder
from tests.corpus_folders import ROOT, wav_bytes, write
from tests.tiny_corpus import WORDS, prepare_tiny

DOCUMENT = (ROOT / "docs" / "reuse.md").read_text(encoding="utf-8")


class Example(NamedTuple):
    """A change of a recipe, and what is to be run then in its folder."""

    title: str
    diff: str
    script: str
    yaml: str


# Before the examples: upstream's manifests get the transcripts.
WORDS_DIFF = re.search(r"^```diff\n(.*?)^```$", DOCUMENT, re.M | re.S)[1]
EXAMPLES = [
    Example(*found)
    for found in re.findall(
        r"^## (.+?)$.*?^```diff\n(.*?)^```$.*?^    python (\S+) (\S+) ",
        DOCUMENT,
        re.MULTILINE | re.DOTALL,
    )
]
POOLING, COST, DECODER = EXAMPLES
RECIPE = "recipes/IEMOCAP/emotion_recognition"
LABELS = list(WORDS)
TEXTS = [
    f"{word} he said" for words in WORDS.values() for word in words.split()
]
NARROW = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def apply(diff, folder):
    """Lays a diff over a copy of the small recipe."""
    shutil.copytree(ROOT / "tests" / "small_recipe", folder)
    subprocess.run(
        ["git", "apply", "-"], cwd=folder, input=diff.encode(), check=True
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The corpus of tones, with manifests of the columns that upstream has."""
    folder = tmp_path_factory.mktemp("data")
    prepare_tiny(folder, folder / "manifests", LABELS, train_size=60)
    for split in ("train", "valid", "test"):
        rows = json.loads((folder / f"manifests/{split}.json").read_text())
        content = {
            name: {
                "wav": row["wav"],
                "words": row["text"],
                "emo": row["emotion"],
            }
            for name, row in rows.items()
        }
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def train(tmp_path, data, monkeypatch):
    """Applies an example to the small recipe and runs what it says.

    Gives the run's folder and its log.
    """

    def run(example, **overrides):
        apply(example.diff, tmp_path / "copy")
        output = tmp_path / "results"
        options = {"data_folder": data, "output_folder": output, **overrides}
        command = [example.script, example.yaml, "--device=cpu"]
        command += [f"--{name}={value}" for name, value in options.items()]
        monkeypatch.chdir(tmp_path / "copy" / RECIPE)
        monkeypatch.syspath_prepend(Path.cwd())
        for name in ("train", "iemocap_prepare"):  # each copy has its own
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(sys, "argv", command)
        runpy.run_path(example.script, run_name="__main__")
        return output, (output / "train_log.txt").read_text()

    return run


def losses(log):
    """The training losses, epoch by epoch."""
    return [float(x) for x in re.findall(r"train loss: ([^\s,]+)", log)]


def error_rate(log):
    """The share of test utterances that were not recognized; by chance 2/3."""
    return float(re.search(r"test error: ([^\s,]+)", log)[1])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.title)
def test_an_example_takes_at_most_ten_lines_of_python(example):
    pattern = r"^\+{3} \S+\.py\n(.*?)(?=^--- |\Z)"
    files = re.findall(pattern, example.diff, re.M | re.S)
    added = re.findall(r"^\+(?!\+\+ )", "".join(files), re.M)
    assert 0 < len(added) <= 10


def test_manifests_get_what_was_said(tmp_path):
    apply(WORDS_DIFF, tmp_path / "copy")
    session, dialogue = tmp_path / "Session1", "Ses01F_impro01"
    write(
        session / "dialog" / "transcriptions" / f"{dialogue}.txt",
        f"{dialogue}_F000 [006.2901-008.2357]: Excuse me.\n"
        f"{dialogue}_M000 [007.5712-010.4750]: Do you [have]: your forms?\n",
    )
    wavs = session / "sentences" / "wav" / dialogue
    rows = [
        [str(write(wavs / f"{dialogue}_{turn}.wav", wav_bytes())), "neu", "F"]
        for turn in ("F000", "M000", "M001")
    ]
    module = tmp_path / "copy" / RECIPE / "iemocap_prepare.py"
    runpy.run_path(str(module))["create_json"](rows, tmp_path / "train.json")
    manifest = json.loads((tmp_path / "train.json").read_text())
    assert [row["words"] for row in manifest.values()] == [
        "Excuse me.",
        "Do you [have]: your forms?",
        "",  # no transcript has it
    ]


def test_the_emoq_former_pools_the_frames_of_ecapa_tdnn(train, tmp_path):
    roberta = build_text_encoder(tmp_path / "roberta", TEXTS, **NARROW)
    _, log = train(POOLING, text_encoder=roberta)
    assert losses(log)[-1] < losses(log)[0]
    assert error_rate(log) < 0.4


def test_mal_is_the_cost_of_wav2vec2(train, tmp_path):
    torch.manual_seed(0)
    hubert = HubertModel(
        HubertConfig(
            **NARROW,
            conv_dim=[16] * 7,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        )
    )
    hubert.save_pretrained(tmp_path / "hubert")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "hubert")
    _, log = train(COST, wav2vec2_hub=tmp_path / "hubert", encoder_dim=16)
    assert losses(log)[-1] < losses(log)[0]
    assert error_rate(log) < 0.4


def test_a_llama_answers_with_other_labels_for_any_embedding(train, tmp_path):
    words = ["furious", "delighted", "gloomy"]
    llama = build_llm(
        tmp_path / "llm",
        TEXTS,
        words,
        model_type="llama",
        **NARROW,
        num_key_value_heads=1,
        initializer_range=0.4,
    )
    output, log = train(
        DECODER,
        llm=llama,
        labels=json.dumps(LABELS),
        answers=json.dumps(words),
    )
    assert losses(log)[-1] < losses(log)[0]
    assert error_rate(log) < 0.4
    saved = load_file(next(output.glob("save/*/decoder.ckpt")))
    assert any("lora" in name for name in saved)
    assert not any("embed_tokens" in name for name in saved)
