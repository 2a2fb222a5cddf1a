"""What docs/extending.md says can be done as it stands there."""

import doctest
import importlib
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from ruamel.yaml import YAML

import train
from emoq_modules import EmotionRecognizer
from emoq_modules.errors import UnsafeYAMLError
from emoq_modules.evaluation.metrics import MEASURES
from emoq_modules.evaluation.results import read_predictions
from emoq_modules.training.configuration import merge_presets
from tests.corpus_folders import ROOT, all_rows, read_splits, write

TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
# Path -> content, of the blocks that begin with their file's path.
FILES = {
    path: f"{block}\n"
    for block, path in re.findall(
        r"^```\w+\n(# (\S+)\n.*?)\n```$", TEXT, re.DOTALL | re.MULTILINE
    )
}
DRY_RUN, TRAIN, TRAIN_WITH_MFCC = (
    shlex.split(line)
    for line in TEXT.replace("\\\n", "").splitlines()
    if line.startswith("python ")
)
EMOTIONS = ("angry", "happy", "sad")


@pytest.fixture(scope="module", autouse=True)
def checkout(tmp_path_factory):
    """A checkout with the document's files and a corpus TONES; one is in it."""
    folder = tmp_path_factory.mktemp("checkout")
    for needed in ("hparams", "recipes/table"):
        shutil.copytree(ROOT / needed, folder / needed)
    for path, content in FILES.items():
        assert not (ROOT / path).exists(), (
            f"{path} is there: remove what was made after the document"
        )
        write(folder / path, content)
    write_tones(folder / "tones")
    with pytest.MonkeyPatch.context() as patches:
        patches.chdir(folder)
        patches.syspath_prepend(folder)
        yield folder
    for name in [name for name in sys.modules if "recipes.tones" in name]:
        del sys.modules[name]


def write_tones(folder):
    """Two utterances of each class by each of four speakers."""
    for speaker in range(4):
        for pitch, emotion in enumerate(EMOTIONS, start=1):
            for take in range(2):
                times = np.arange(4800) / 16000
                hz = 150 * pitch + 10 * speaker + take
                tone = 0.3 * np.sin(2 * np.pi * hz * times)
                path = folder / "wav" / f"S{speaker}_{emotion}_{take}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, tone, 16000)
    (folder / "wav/S0_sad_9.wav").write_text("no sound")
    soundfile.write(folder / "wav/S0_bored_0.wav", tone, 16000)


def trained(command, *options):
    """The output folder of both stages of a command of the document."""
    arguments = [word.replace("/data/tones", "tones") for word in command[2:]]
    train.main([*arguments, "--number_of_epochs", "2", *options])
    return "results/tones3/{}/fold1-seed1234/stage{}"


def assert_all_are_predicted(folder, variant):
    """Whether both stages measured every utterance of the test split."""
    tested = read_splits("results/tones3/manifests/fold1")["test"]
    assert {row["speaker"] for row in tested.values()} == {"S0"}
    for stage in (1, 2):
        path = folder.format(variant, stage)
        with open(f"{path}/results.json", encoding="utf-8") as file:
            results = json.load(file)
        assert (results["stage"], results["n"]) == (stage, 6)
        assert all(0 <= results[measure] <= 100 for measure in MEASURES)
        assert set(read_predictions(path).ids) == tested.keys()


def test_code_is_as_ruff_wants_it():
    code = [path for path in FILES if path.endswith(".py")]
    options = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, *options, *code],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def test_a_dry_run_shows_the_corpus(capsys, caplog):
    caplog.set_level("INFO")
    arguments = [word.replace("/data/tones", "tones") for word in DRY_RUN[2:]]
    train.main([*arguments, "--results_folder", "dry"])
    assert "left out, labeled 'bored': 1 (S0_bored_0)" in caplog.text
    assert "left out, unusable audio file: 1 (S0_sad_9)" in caplog.text
    splits = read_splits("dry/tones3/manifests/fold1")
    shown = capsys.readouterr().out
    assert "test: 6 utterances (angry 2, happy 2, sad 2)" in shown
    assert ", 0.30 s: angry\n<|im_start|>system" in shown
    assert all_rows("dry/tones3/manifests/fold1")["S1_happy_1"] == {
        "wav": "{data_root}/wav/S1_happy_1.wav",
        "duration": 0.3,
        "speaker": "S1",
        "session": "",
        "dialogue": "S1_happy_1",
        "turn": 0,
        "text": "",
        "emotion": "happy",
        "corpus": "",
    }
    assert {row["speaker"] for row in splits["test"].values()} == {"S0"}


def test_another_folder_is_refused(tmp_path, capsys):
    arguments = [word.replace("/data/tones", str(tmp_path)) for word in TRAIN]
    assert train.run(arguments[2:]) == 2
    assert f"No recording of the corpus is in {tmp_path}" in (
        capsys.readouterr().err
    )


def test_a_corpus_trains_by_the_command_in_the_document():
    assert_all_are_predicted(trained(TRAIN), "emoq")


def test_an_encoder_trains_by_the_command_in_the_document():
    folder = trained(
        TRAIN_WITH_MFCC,
        # Frames are kept, under the encoder's identity.
        *("--feature_store", "store", "--augment_audio", "null"),
    )
    assert_all_are_predicted(folder, "mfcc")
    recognizer = folder.format("mfcc", 2) + "/recognizer"
    with pytest.raises(UnsafeYAMLError, match="new:recipes.tones.mfcc.MFCC"):
        EmotionRecognizer.from_hparams(recognizer)
    recognizer = EmotionRecognizer.from_hparams(
        recognizer, trust_source=True, overrides={"temperature": 1}
    )
    test = read_predictions(folder.format("mfcc", 2))
    posteriors, *_ = recognizer.classify_file(f"tones/wav/{test.ids[0]}.wav")
    assert posteriors[0].tolist() == pytest.approx(test.posteriors[0], abs=1e-4)


def test_frames_of_the_encoder_do_not_depend_on_the_batch():
    encoder = importlib.import_module("recipes.tones.mfcc").MFCCEncoder(13)
    assert encoder.dim == 13
    counts = [4000, 2345, 1]
    batch = torch.rand(3, 4000, generator=torch.Generator().manual_seed(0))
    together, lens = encoder(batch, torch.tensor(counts) / 4000)
    frames = (lens * together.shape[1]).round().int().tolist()
    for wav, count, row, length in zip(
        batch, counts, together, frames, strict=True
    ):
        alone, _ = encoder(wav[None, :count], torch.ones(1))
        assert alone.shape == (1, length, 13)
        torch.testing.assert_close(row[:length], alone[0])
        assert length == 1 + count // round(16000 * encoder.hop_s)


def test_example_of_the_encoder_runs():
    module = importlib.import_module("recipes.tones.mfcc")
    failed, tried = doctest.testmod(module)
    assert tried and not failed


def test_other_backbones_are_taken_by_name():
    presets = [
        f"hparams/presets/{name}.yaml" for name in ("wavlm_large", "smollm2")
    ]
    resolved = YAML().load(
        merge_presets("hparams/emoq_stage2.yaml", presets, "data_folder: /data")
    )
    assert resolved["audio_encoder"]["source"] == "microsoft/wavlm-large"
    assert resolved["fusion"]["audio_dim"] == 1024
    llm = "HuggingFaceTB/SmolLM2-1.7B-Instruct"
    assert resolved["decoder"]["source"] == llm
    assert resolved["decoder"]["tokenizer"] == llm


@pytest.fixture(scope="module")
def llama():
    """The variables of try_llama.py, after it has run."""
    return runpy.run_path("try_llama.py")


def test_a_llama_of_random_weights_gives_posteriors_and_its_adapter_learns(
    llama,
):
    decoder, loss = llama["decoder"], llama["loss"]
    assert decoder.prompt.labels_are_single_tokens
    assert type(decoder.llm).__name__ == "LlamaForCausalLM"
    assert loss.isfinite()
    gradients = {
        name: parameter.grad for name, parameter in decoder.named_parameters()
    }
    # B starts at zero, and with it the gradient of A.
    learning = {name: g for name, g in gradients.items() if "lora_B" in name}
    layers = {name.split(".lora_B")[0].split(".")[-1] for name in learning}
    assert layers == {"q_proj", "v_proj"} and len(learning) == 4
    assert all(gradient.abs().sum() > 0 for gradient in learning.values())
    assert all(
        (gradient is None) == ("lora" not in name and "projector" not in name)
        for name, gradient in gradients.items()
    )
    posteriors = decoder.posteriors(llama["embeddings"], llama["prompts"])
    assert posteriors.shape == (2, 3)
    torch.testing.assert_close(posteriors.sum(dim=1), torch.ones(2))


def test_its_configuration_trains_in_the_place_of_a_name(llama):
    folder = trained(
        TRAIN,
        *("--variant", "llama", "--llm", json.dumps(llama["LLAMA"])),
        *("--llm_tokenizer", "results/tokenizer"),
    )
    assert_all_are_predicted(folder, "llama")
    # Whatever loaded it would draw other weights for the LLM.
    assert not Path(folder.format("llama", 2), "recognizer").exists()
