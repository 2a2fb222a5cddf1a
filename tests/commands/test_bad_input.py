"""Bad input: one clear message, an exit status, and nothing good is damaged.

Every case breaks something in a copy of a good run, and starts it again.
"""

import hashlib
import logging
import re
import runpy
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

import train
from emoq_modules.commands import cli
from emoq_modules.commands.options import exit_status
from emoq_modules.dataio.files import describe, read_contents, write_contents
from tests.conftest import flip_a_byte

ROOT = Path(__file__).parents[2]
STAGE1 = str(ROOT / "hparams/emoq_stage1.yaml")
STAGE2 = str(ROOT / "hparams/emoq_stage2.yaml")
TINY = ("--preset", str(ROOT / "tests/tiny.yaml"))
EMODB = ("--preset", str(ROOT / "recipes/EMODB/emodb4.yaml"))
# Another folder, so that the run starts from nothing but corpus and features.
AFRESH = ("--variant", "afresh")

RESULTS = Path("results")  # in the working folder of each case
WAV = RESULTS / "data/train03.wav"
MANIFEST = RESULTS / "tiny/manifests/fold1/train.json"
RUN = RESULTS / "tiny/emoq/fold1-seed1234"
# What a start may write anew whatever becomes of it: logs, and what spares
# reading all audio.
VOLATILE = {
    "audio_digests.npy",
    "env.log",
    "experiment.py",
    "log.txt",
    "train_log.txt",
}


@pytest.fixture(scope="module")
def good_run(tmp_path_factory):
    """Both stages of a run to which nothing has happened."""
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patches:
        patches.chdir(folder)
        assert train.run(again(stage=STAGE2)) == 0
    return folder


@pytest.fixture
def folder(good_run, tmp_path, monkeypatch, no_hub):
    """The working folder: it holds a copy of the good run."""
    shutil.copytree(good_run / RESULTS, tmp_path / RESULTS)
    monkeypatch.chdir(tmp_path)
    # A run leaves its handlers, which write to what was captured then.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    return tmp_path


def start(*arguments):
    """Exit status of ``train.py``."""
    try:
        return train.run(arguments)
    except SystemExit as stop:  # of the command line's parser
        return stop.code


def state(folder):
    """Digest of every file that matters."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in VOLATILE
    }


def again(*options, stage=STAGE1):
    """The command of the good run, and more options."""
    return [stage, *TINY, "--number_of_epochs", "2", *options]


# --- What can be broken -------------------------------------------------------


def nothing():
    """The command alone is bad."""


def remove_wav():
    WAV.unlink()


def truncate_wav():
    WAV.write_bytes(WAV.read_bytes()[:5000])


def text_as_wav():
    WAV.write_text("This is no audio.")


def wav(samples, rate=16000, **options):
    return lambda: soundfile.write(WAV, samples, rate, **options)


def llm_that_loses_the_transcript():
    shutil.copytree(RUN / "stage2/backbones/llm", "llm")
    Path("llm/chat_template.jinja").write_text("{{ messages[0].content }}")


def own_manifest(change):
    """Manifests that somebody has made by hand, with a fault."""

    def damage():
        MANIFEST.write_text(change(MANIFEST.read_text()))
        Path("own.yaml").write_text("prepare: !name:builtins.dict")

    return damage


def own_manifest_of_an_unknown_dialogue():
    own_manifest(lambda text: text.replace("train dialogue", "lost"))()
    Path("own.yaml").write_text("stage2:\n    prepare: !name:builtins.dict")
    shutil.rmtree(RUN / "stage2")


def preset(content):
    def damage():
        Path("preset.yaml").write_bytes(content)

    return damage


def truncate(path):
    path.write_bytes(path.read_bytes()[:1000])


def harm_newest_checkpoint(harm):
    only = sorted((RUN / "stage1/save").iterdir())[-1]
    newer = shutil.copytree(only, only.with_name("CKPT+newer"))
    meta = newer / "CKPT.yaml"
    later = re.sub(r"unixtime: \d", "unixtime: 9", meta.read_text())
    meta.write_text(later)
    write_contents(newer, read_contents(newer) | {meta.name: describe(meta)})
    harm(newer / "fusion.ckpt")


def harm_all_checkpoints(harm):
    for checkpoint in (RUN / "stage1/save").iterdir():
        harm(checkpoint / "optimizer.ckpt")


def harm_stage_1(harm):
    shutil.rmtree(RUN / "stage2")
    harm(RUN / "stage1/emoq_former.safetensors")


def overwrite(name, content):
    (RUN / name).write_bytes(content)


# --- The tables ---------------------------------------------------------------

OWN = ("--preset", "own.yaml", *AFRESH)
PRESET = ("--preset", "preset.yaml")
NAME = r"train03\.wav"
NO_NUMBERS = wav(np.full(8000, np.nan), subtype="FLOAT")
STEREO = wav(np.random.default_rng(0).normal(0, 0.1, (22050, 2)), 44100)
PREPARE = ".*run the prepare step"

# Name, the command, what the message names and says to do, what is broken.
REFUSED = [
    (
        "embedding_dim that is not the text encoder's",
        again("--embedding_dim", "32", "--text_encoder", "encoder", *AFRESH),
        r"embedding_dim is 32, .* have 16 values: set embedding_dim to 16",
        lambda: shutil.copytree(
            RUN / "stage1/backbones/text_encoder", "encoder"
        ),
    ),
    (
        "wrong data folder",
        [STAGE2, "--data_folder", "nowhere"],
        r"nowhere does not exist: give the folder MELD\.Raw",
    ),
    *(
        (name, again(), rf"(?s)'train03' .*{says}", damage)
        for name, says, damage in [
            ("missing wav", rf" no file .*{NAME}{PREPARE}", remove_wav),
            ("truncated wav", rf"{NAME} is truncated{PREPARE}", truncate_wav),
            ("0 samples", rf"{NAME} has 0 samples{PREPARE}", wav(np.zeros(0))),
            ("text as wav", rf"{NAME} cannot be read as.*Mend", text_as_wav),
        ]
    ),
    (
        "samples that are no numbers",
        again(*AFRESH),
        r"train03\.wav holds samples that are not finite.*leave it out",
        NO_NUMBERS,
    ),
    (
        "samples that are no numbers, read by a worker",
        again("--feature_store", "null", "--num_workers", "1", *AFRESH),
        r"^error: \S*train03\.wav holds samples that are not finite",
        NO_NUMBERS,
    ),
    (
        "unknown label in a manifest",
        again(*OWN),
        r"(?s)'train\d\d' has the label 'glum', not one of angry, happy, sad"
        r".*Mend",
        own_manifest(lambda text: text.replace('"sad"', '"glum"', 1)),
    ),
    (
        "unknown label in a preset",
        [
            STAGE1,
            *TINY,
            *EMODB,
            "--data_folder",
            ".",
            "--labels",
            "[glum, sad]",
        ],
        r"label is 'glum'; it must be one of angry, bored",
    ),
    (
        "repeated id",
        again(*OWN),
        r"(?s)'train03' occurs more than once.*Mend",
        own_manifest(lambda text: text.replace("train04", "train03", 1)),
    ),
    (
        "fold that does not exist",
        again("--fold", "7"),
        r"no fold 7 in tiny; its folds are 1",
    ),
    (
        "preset that is no text",
        again(*PRESET),
        r"preset\.yaml is no YAML file",
        preset(bytes(range(256))),
    ),
    (
        "misspelt option",
        again("--num_querys", "3"),
        r"'num_querys' in the command line .*Did you mean num_queries\?",
    ),
    (
        "option given twice",
        again("--lr", "0.1", "--lr", "0.2"),
        r"--lr is given twice",
    ),
    *(
        (
            f"{key} of {value}",
            again(f"--{key}", value, stage=STAGE2),
            rf"{key} (is|in the command line is) '?{value}'?; it has to be "
            + what,
        )
        for key, value, what in (
            ("context_turns", "-1", "a whole number, 0 or more"),
            ("context_turns", "1.5", "a whole number"),
            ("context_turns", "True", "a whole number"),
            ("lr", "-1", r"a number in \[0, inf\)"),
            ("lr_lora", "-1", r"a number in \[0, inf\)"),
            ("max_grad_norm", "-1.0", r"a number in \(0, inf\)"),
            ("warmup_ratio", "5", r"a number in \[0, 1\]"),
            ("weight_decay", "-1", r"a number in \[0, inf\)"),
            ("batch_size", "0", "a whole number, 1 or more"),
            ("grad_accumulation_factor", "0", "a whole number, 1 or more"),
            ("num_queries", "-1", "a whole number, 0 or more"),
            ("llm_dtype", "bf16", "one of float32, bfloat16, float16"),
            ("scheduler", "cosin", "one of linear, cosine"),
            ("check_llm", "maybe", "something like True"),
            ("class_weighting", "max", "one of all_one, max_one"),
            ("fusion_dropout", "1", r"a number in \[0, 1\); or null"),
        )
    ),
    (
        "utterances that are too long",
        again("--max_utterance_s", "0.1", *AFRESH),
        r"more than 0\.1 s, 36 \(.* s, \.\.\.\), of which a batch",
    ),
    (
        "device that is none",
        again("--device", "gpu", stage=STAGE2),
        r"--device gpu is not to be had",
    ),
    *(
        (
            f"words {words}",
            again("--words", words, stage=STAGE2),
            message,
        )
        for words, message in (
            ("{glad: merry}", r"There are words for glad, but the labels are"),
            ("{sad: angry}", r"An emotion word occurs twice in \['angry'"),
            ("sad=sadness", r"'sad=sadness'; .* mapping, as {sad: sadness}"),
            ("{sad: 'low, sad'}", r"'low, sad' cannot stand in the prompt's"),
        )
    ),
    (
        "context without a place in the prompt",
        again(*PRESET, "--context_turns", "3", stage=STAGE2),
        r"context_turns is 3, but .* a line with {context}, or set context_"
        r"turns to 0\. It is 'Voice: <AUDIO>'",
        preset(
            b"stage2: {prompt: !new:emoq_modules.PromptTemplate "
            b"{system: '{labels}?', user: 'Voice: <AUDIO>'}}"
        ),
    ),
    (
        "dialogue that is none",
        again(*OWN[:2], "--context_turns", "1", stage=STAGE2),
        r"dialogues\.json lacks dialogues of the manifests beside it, "
        r"1 \(lost\).*prepare step again",
        own_manifest_of_an_unknown_dialogue,
    ),
    *(
        (
            f"frames of another size, by {key}",
            again(f"--{key}", value, *AFRESH),
            rf"frames of 1 x 80 .* made for {made_for}: set {key} to {advice}",
        )
        for key, value, made_for, advice in [
            ("audio_dim", "64", "1 x 64", "80"),
            ("audio_layer", "[1, 2]", "2 x 80", "a single layer"),
        ]
    ),
    (
        "LLM whose chat template loses the transcript",
        again("--llm", "llm", *AFRESH, stage=STAGE2),
        r"leaves 'Before: {context}' out of the prompt",
        llm_that_loses_the_transcript,
    ),
    (
        "LLM in half precision on a CPU",
        again("--llm_dtype", "float16", *AFRESH, stage=STAGE2),
        r"llm_dtype is float16, which is for a GPU",
    ),
    *(
        (name, again(*words, *AFRESH, stage=stage), says)
        for name, stage, words, says in [
            ("precision of a GPU", STAGE1, ("--precision", "fp16"), "is fp16"),
            (
                "rate of no use",
                STAGE1,
                ("--lr", "1e30"),
                "lower learning rates",
            ),
            ("number too large", STAGE1, ("--seed", "9" * 20), "at most"),
            ("no epoch", STAGE1, ("--patience", "0"), "1 or more"),
            ("schedule", STAGE1, ("--scheduler", "greedy"), "one of linear"),
            ("stage", STAGE2, ("--stage", "1"), "--stage is no option"),
            (
                "start",
                STAGE2,
                ("--fusion_weights", "null"),
                "--pretrainer null",
            ),
            ("no folds", STAGE1, ("--folds", "0"), "folds is 0; it has to"),
            ("folds", STAGE1, ("--folds", "two"), "folds is 'two'; it has to"),
            ("no value", STAGE1, ("--text_encoder", ""), "has an empty value"),
            ("stray word", STAGE1, ("two",), "'two' belongs to no option"),
            ("flag with a value", STAGE1, ("--debug", "yes"), "'yes' belongs"),
            (
                "weights that are not there",
                STAGE2,
                ("--fusion_weights", "none.safetensors"),
                "fusion_weights is none.safetensors, and there is no such file",
            ),
            (
                "weights that are none",
                STAGE2,
                ("--fusion_weights", str(MANIFEST)),
                r"train.json cannot be read .*: fusion_weights has to be what",
            ),
        ]
    ),
    *(
        (
            f"{what} settings of a run",
            again(),
            r"stage1/hyperparams.yaml is damaged: restore",
            partial(overwrite, "stage1/hyperparams.yaml", content),
        )
        for what, content in [
            ("empty", b""),
            ("broken", b"a: [1"),
            ("binary", bytes(range(256))),
        ]
    ),
    (
        "digests of the corpus that are none",
        again(),
        r"corpus.json is damaged",
        partial(overwrite, "stage1/corpus.json", b"3"),
    ),
    (
        "folder as experiment",
        ["--data_folder", "results", STAGE1],
        r"results cannot be read|results is no experiment",
    ),
    (
        "run folder of another configuration",
        again("--lr", "0.5"),
        r"lr was '0\.01' and is now '0\.5'.* --results_folder",
    ),
    (
        "run folder of other run options",
        again("--max_grad_norm", "0.5"),
        r"max_grad_norm was '1\.0' and is now '0\.5'.* --results_folder",
    ),
    (
        "truncated checkpoints, no earlier one",
        again(),
        r"No checkpoint in .*stage1/save is whole \(optimizer\.ckpt has 1000 "
        r"bytes.*Restore",
        partial(harm_all_checkpoints, truncate),
    ),
    (
        "flipped byte in all checkpoints",
        again(),
        r"No checkpoint in .*stage1/save is whole \(optimizer\.ckpt is damaged"
        r".*Restore",
        partial(harm_all_checkpoints, flip_a_byte),
    ),
    *(
        (
            f"{what} weights of stage 1",
            again(stage=STAGE2),
            rf"stage1/emoq_former\.safetensors is not as it was written: \S+ "
            rf"{says}.*Restore.*or delete",
            partial(harm_stage_1, harm),
        )
        for what, says, harm in [
            ("truncated", "has 1000 bytes", truncate),
            ("damaged", "is damaged", flip_a_byte),
        ]
    ),
    (
        "model that cannot be had",
        again("--text_encoder", "nobody/nothing", *AFRESH),
        r"nobody/nothing is no local folder.*hf download nobody/nothing",
    ),
]
# Name, the command, what is reported, what is broken.
HANDLED = [
    ("44.1 kHz stereo", again(*AFRESH), r"Results are in", STEREO),
    *(
        (
            f"{what} newest checkpoint",
            again(),
            rf"(?s)CKPT\+newer is left out: fusion\.ckpt {says}.*Loading a "
            r"checkpoint from \S*CKPT\+2",
            partial(harm_newest_checkpoint, harm),
        )
        for what, says, harm in [
            ("truncated", r"has 1000 bytes instead of \d+", truncate),
            ("damaged", "is damaged", flip_a_byte),
        ]
    ),
]


def table(cases):
    return pytest.mark.parametrize(
        ("command", "says", "damage"),
        [(*case, nothing)[:3] for _, *case in cases],
        ids=[name for name, *_ in cases],
    )


@table(REFUSED)
def test_bad_input_ends_with_one_message_and_damages_nothing(
    folder, capfd, command, says, damage
):
    damage()
    before = state(folder)
    status = start(*command)
    logged, printed = capfd.readouterr()
    assert status == 2, printed
    message = printed[printed.index("error: ") :]
    assert re.search(says, message), printed
    assert printed.count("error: ") == 1
    assert "Traceback" not in printed + logged
    after = state(folder)
    assert {path: after.get(path) for path in before} == before
    assert not list(folder.rglob("*.partial"))
    assert not list(RESULTS.glob("*/afresh/**/CKPT*"))  # before it trained


@table(HANDLED)
def test_bad_input_that_can_be_handled_is_reported(
    folder, capfd, command, says, damage
):
    damage()
    before = state(RESULTS / "data") | state(MANIFEST.parent)
    assert start(*command) == 0
    assert re.search(says, capfd.readouterr().out)
    assert state(RESULTS / "data") | state(MANIFEST.parent) == before


def test_the_command_that_met_damaged_frames_makes_them_again(folder, capfd):
    for shard in RESULTS.rglob("shard-*"):
        flip_a_byte(shard)
    assert start(*again(*AFRESH)) == 2
    says = (
        r"error: The shard \S+ with the frames of \S+\.wav cannot be read "
        r"\(they have another checksum .*\)\. Start the run again"
    )
    assert re.search(says, capfd.readouterr().err)
    while start(*again(*AFRESH)):
        assert re.search(says, capfd.readouterr().err)  # of another shard


def test_exit_status_of_the_program_itself(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["train.py", STAGE2])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    assert left.value.code == 2
    printed, message = capfd.readouterr()
    says = r"(?s)error: data_folder .*: give it as --data_folder VALUE\.\n"
    assert re.fullmatch(says, message)
    assert printed == ""


def test_a_mistake_can_be_corrected_in_the_same_folder(tmp_path, monkeypatch):
    # A start that failed before anything was trained must not be in the way.
    monkeypatch.chdir(tmp_path)
    wrong = again("--selection_metric", "UAR")
    assert start(*wrong) == 2
    assert start(*again()) == 0


def test_who_stops_a_run_is_told_how_it_goes_on(monkeypatch, capsys):
    def stopped(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "main", stopped)
    assert train.run([STAGE2]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(cli, "_run", lambda *_: stopped(None))
    assert cli.main(["serve"]) == 130
    assert capsys.readouterr().err == "\nstopped\n"  # it would begin anew


def test_a_data_loader_that_died_is_told(capsys):
    def died(arguments):
        raise RuntimeError(
            "DataLoader worker (pid 7) is killed by signal: Killed."
        )

    assert exit_status(died, []) == 2
    assert "Killed. For want of memory, perhaps" in capsys.readouterr().err
