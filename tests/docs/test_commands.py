"""Commands and code of the documents run as they stand there.

Those of docs/extending.md, docs/reuse.md and the tutorial have tests of their
own.
"""

import re
import runpy
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from torch.distributed.run import get_args_parser

import train
from emoq_modules.commands import cli
from tests.corpus_folders import ROOT, wav_bytes, write
from tests.docs.test_documents import DOCUMENTS

PROGRAMS = "python", "torchrun", "emoq", "make", "pip", "curl"
BEGINNING = re.compile(rf"(\w+=\S|(\.venv/bin/)?({'|'.join(PROGRAMS)}) )")
# A program prints what the shell has made of its command.
PRELUDE = "".join(
    f"{name}() {{ printf '%s\\x1f' {name} \"$@\"; echo; }}\n"
    for name in PROGRAMS
)


def blocks(document, language=""):
    """The fenced blocks of a language."""
    text = document.read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [block for name, block in found if name == language]


def commands(document, program, folder=ROOT):
    """The arguments of each call of a program, as the shell reads them."""
    code = [block for block in blocks(document) if BEGINNING.match(block)]
    done = subprocess.run(
        ["bash", "-eu"],
        input=PRELUDE + "".join(code).replace(".venv/bin/", ""),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    lines = [line.split("\x1f")[:-1] for line in done.stdout.splitlines()]
    return [words for name, *words in lines if name == program]


def collected(program, wanted=lambda words: True):
    """The commands of all documents, each once, as a test's parameters."""
    found = {
        " ".join(words): words
        for document in DOCUMENTS
        if document.name != "extending.md"
        for words in commands(document, program)
        if wanted(words)
    }
    return pytest.mark.parametrize("words", found.values(), ids=found.keys())


def help_of(words, monkeypatch, capsys):
    """What a program of Python says that it takes."""
    is_module = words[0] == "-m"
    name = words[1] if is_module else words[0]
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit):
        if is_module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")
    return capsys.readouterr().out


def assert_takes(words, text):
    """Whether a help names every option of a command."""
    for option in [word for word in words if word.startswith("--")]:
        assert re.search(rf"{option.partition('=')[0]}\b", text), option


# --- Programs know them -------------------------------------------------------


def assert_trains(words, folder, capsys):
    """Whether nothing is in the way of training but that data are missing."""
    if "cuda:0" in words and not torch.cuda.is_available():
        words = ["cpu" if word == "cuda:0" else word for word in words]
    # Weights of another run come first.
    key = "--fusion_weights" if "--fusion_weights" in words else "--data_folder"
    missing = words[words.index(key) + 1]
    assert train.run([*words, "--results_folder", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "error: " in said and missing in said, said


@collected(
    "python",
    lambda words: words[0] == "train.py" and "--data_folder" in words,
)
def test_train_knows_the_command(words, tmp_path, capsys):
    assert_trains(words[1:], tmp_path, capsys)


def test_train_describes_as_the_results_say(capsys):
    train.main(["hparams/emoq_stage2.yaml", "--describe"])
    table = capsys.readouterr().out
    assert table in blocks(ROOT / "docs" / "results.md")


@collected("torchrun")
def test_torchrun_knows_the_command(words, tmp_path, capsys):
    own = get_args_parser().parse_args(words)
    assert own.training_script == "train.py"
    words = own.training_script_args
    if "--results_folder" in words:
        at = words.index("--results_folder")
        words = words[:at] + words[at + 2 :]
    assert_trains(words, tmp_path, capsys)


@collected(
    "python", lambda words: words[0] != "train.py" and words[1] != "pytest"
)
def test_a_script_takes_the_options(words, monkeypatch, capsys):
    assert_takes(words, help_of(words, monkeypatch, capsys))


@collected(
    "emoq",
    lambda words: (
        words[0] == "reproduce" and not {"--dry_run", "--report"} & {*words}
    ),
)
def test_reproduce_plans_the_command(words, tmp_path, capsys):
    folder = ["--results_folder", str(tmp_path)]
    assert cli.main([*words, "--dry_run", *folder]) == 0
    assert "train.py" in capsys.readouterr().out


@collected("emoq", lambda words: words[0] == "probe")
def test_probe_lacks_nothing_but_the_corpus(words, tmp_path, capsys):
    assert cli.main([*words, "--results_folder", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    data_folder = words[words.index("--data_folder") + 1]
    assert "error: " in said and data_folder in said, said


@collected("emoq", lambda words: words[0] not in ("reproduce", "probe"))
def test_emoq_takes_the_options(words, capsys):
    with pytest.raises(SystemExit):
        cli.main([words[0], "--help"])
    assert_takes(words, capsys.readouterr().out)


@collected("pip")
def test_extras_are_there(words):
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for extra in re.findall(r"\.\[(\w+)\]", " ".join(words)):
        assert f'"{extra}": [' in setup, extra


# --- On a trained model -------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tiny_results, tmp_path_factory):
    """A folder with what the documents name, of a tiny trained system."""
    folder = tmp_path_factory.mktemp("folder")
    run = tiny_results / "tiny/emoq/fold1-seed1234"
    (folder / "results/demo/emoq").mkdir(parents=True)
    (folder / "results/demo/emoq/fold1-seed1234").symlink_to(run)
    (folder / "RUN").symlink_to(run / "stage2")
    sound = wav_bytes(0.5)
    for name in ("hello.wav", "other.flac", "calls/a.wav"):
        write(folder / name, sound)
    write(folder / "results/demo/corpus/demo-v1/s10d00/s10d00t00.wav", sound)
    manifest = folder / "results/demo/manifests/fold1/test.json"
    manifest.parent.mkdir(parents=True)
    shutil.copy(tiny_results / "tiny/manifests/fold1/test.json", manifest)
    write(folder / "interview.mp4", wav_bytes(5))
    write(folder / "words.csv", "path,text\ncalls/a.wav,great he said\n")
    with pytest.MonkeyPatch.context() as patches:
        patches.chdir(folder)
        yield folder


@pytest.mark.parametrize("name", ["README.md", "docs/using.md"])
def test_a_trained_model_is_used_as_it_says(name, folder, capsys):
    document = ROOT / name
    called = {"predict": 0, "export": 0}
    for words in commands(document, "emoq", folder):
        # A server would not end, and MODEL stands for any of the hub.
        if words[0] in called and "MODEL" not in words:
            assert cli.main(words) == 0, capsys.readouterr().err
            called[words[0]] += 1
    assert all(called.values())
    code = [
        block
        for block in blocks(document, "python")
        if block.startswith("from ") and "gradio_client" not in block
    ]
    assert code
    for block in code:
        names = {}
        exec(block, names)
        assert names["recognizer"].hparams.labels == ["angry", "happy", "sad"]


def test_a_lobe_is_taken_as_the_readme_says(text_encoder):
    (yaml,) = blocks(ROOT / "README.md", "yaml")
    code = blocks(ROOT / "README.md", "python")[-1]
    yaml = yaml.replace("FacebookAI/roberta-base", str(text_encoder))
    hparams = load_hyperpyyaml(yaml)
    pooling = hparams["pooling"]
    names = {
        "self": SimpleNamespace(
            modules=SimpleNamespace(
                pooling=pooling, head=torch.nn.Linear(pooling.output_dim, 4)
            ),
            hparams=SimpleNamespace(**hparams),
        ),
        "frames": torch.randn(4, 20, 768),
        "wav_lens": torch.tensor([1.0, 0.5, 0.7, 0.2]),
        "tokens": torch.ones(4, 6, dtype=torch.long),
        "token_lens": torch.ones(4),
        "labels": torch.tensor([0, 1, 0, 1]),
    }
    exec(code, names)
    names["loss"].backward()
    assert pooling.queries.grad.abs().sum() > 0
