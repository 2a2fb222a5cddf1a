"""The folder of a run: one run, of one set of settings, by one process."""

import json
import os
import shutil
import signal
import socket
import time

import pytest

import train
from benchmarks import choose
from emoq_modules.commands.cli import main
from emoq_modules.errors import BusyError, ConfigurationError
from emoq_modules.training import experiment, stages
from emoq_modules.training.run_folder import claimed
from tests.conftest import fork
from tests.corpus_folders import snapshot
from tests.training.test_training import (
    RUN,
    STAGE1,
    STAGE2,
    arguments,
    stage_1_of,
)


def hold(options, reached, batch=0):
    """Trains up to a batch, says so, and stays there; exits as train.py."""
    seen = []

    def stay(self, *outcome):
        seen.append(outcome)
        if len(seen) > batch:
            reached.touch()
            time.sleep(600)

    stages.EmoQBrain.on_fit_batch_end = stay
    os._exit(train.run(options))


@pytest.fixture
def start_and_hold(tmp_path):
    """Starts processes that train as far as they get; kills them at last."""
    processes = []

    def start(*options, batch=0):
        reached = tmp_path / f"reached-{len(processes)}"
        command = arguments(tmp_path, STAGE1, *options)
        processes.append(fork(hold, command, reached, batch))
        deadline = time.monotonic() + 120
        while not reached.exists() and processes[-1].is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.join()


def test_the_second_process_at_a_run_is_told_who_is_there_and_changes_nothing(
    tmp_path, start_and_hold, capfd
):
    first = start_and_hold()
    before = snapshot(tmp_path / RUN)
    for options in ((), ("--lr", "0.5")):
        second = start_and_hold(*options)
        second.join(10)
        assert second.exitcode == 2
        error = capfd.readouterr().err.splitlines()[-1]
        assert f"error: Process {first.pid} on {socket.gethostname()}" in error
        assert "is at the run in" in error and str(tmp_path / RUN) in error
    assert snapshot(tmp_path / RUN) == before
    assert first.is_alive()


def test_after_a_kill_the_next_start_goes_on_at_once(tmp_path, start_and_hold):
    # Two workers outlive it for seconds, and have what it had open.
    often = "--ckpt_interval_minutes", "0", "--ckpt_interval_steps", "1"
    first = start_and_hold("--num_workers", "2", *often, batch=1)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    train.main(arguments(tmp_path, STAGE1, "--num_workers", "2", *often))
    assert (tmp_path / RUN / "stage1/results.json").exists()


def test_one_of_two_that_start_together_has_the_run(tmp_path):
    def claim(number):
        try:
            with claimed(tmp_path / "run"):
                (tmp_path / f"{number}.has").touch()
                while len(list(tmp_path.glob("*.*"))) < 5:
                    time.sleep(0.01)
        except BusyError:
            (tmp_path / f"{number}.told").touch()

    processes = [fork(claim, number) for number in range(5)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(list(tmp_path.glob("*.has"))) == 1


def test_all_ranks_are_told_that_another_process_is_there(
    tmp_path, start_ranks
):
    folder = tmp_path / "run"

    def work():
        with pytest.raises(BusyError, match=f"Process {parent} on "):
            with claimed(folder):
                pass

    parent = os.getpid()
    with claimed(folder):
        assert start_ranks(2, work) == [0, 0]
    with claimed(folder):
        pass


# --- Stage 1 ------------------------------------------------------------------


@pytest.fixture
def presets(tmp_path):
    """What changes a key that stage 1 alone has, and what it hears."""
    contents = {
        "warmer": "stage1: {temperature: 0.5}",
        "grouped": "stage1: {class_group: 2}",
        "encoder": "audio_encoder: !new:emoq_modules.FbankEncoder {n_mels: 9}",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    return {name: ("--preset", str(tmp_path / name)) for name in contents}


@pytest.fixture
def results(tmp_path, tiny_results):
    """The results folder of both stages, in another place."""
    return shutil.copytree(tiny_results, tmp_path / "results", symlinks=True)


def refused(capfd, *command):
    """The last line of a command that is refused."""
    assert train.run(arguments(*command)) == 2
    return capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_does_not_go_on_with_another_corpus(
    results, stage, capfd, monkeypatch
):
    """Else it would test what it has trained on, and call it a result."""
    stages = results / RUN
    if stage == 1:  # from which a new stage 2 would start
        shutil.rmtree(stages / "stage2")
    train.main(arguments(results, f"hparams/emoq_stage{stage}.yaml"))
    read = experiment.read_corpus

    def changed(hparams):
        manifests, dialogues = read(hparams)
        row = next(iter(manifests["test"].values()))
        row.emotion = {"sad": "happy"}.get(row.emotion, "sad")
        return manifests, dialogues

    monkeypatch.setattr(experiment, "read_corpus", changed)
    names = ("results.json", "predictions.csv")
    before = [(stages / f"stage{stage}" / x).read_bytes() for x in names]
    told = refused(capfd, results)
    assert f"since the run in {stages}/stage{stage} began (test of" in told
    after = [(stages / f"stage{stage}" / x).read_bytes() for x in names]
    assert after == before


def test_a_damaged_list_of_the_corpus_is_named(results, capfd):
    (results / RUN / "stage2/corpus.json").write_text('{"train": "12')
    assert "stage2/corpus.json is damaged" in refused(capfd, results)


@pytest.mark.parametrize("left", ["all", "stage 1", "its weights"])
def test_a_stage_1_of_other_settings_is_not_started_from(
    results, presets, left, capfd
):
    if left != "all":  # as the message of a stage 2 of other settings advises
        shutil.rmtree(results / RUN / "stage2")
    if left == "its weights":
        shutil.rmtree(results / RUN / "stage1/save")
        (results / RUN / "stage1/results.json").unlink()
    before = snapshot(results)
    for preset, says in (
        ("warmer", "temperature was '0.07' and is now '0.5' (and mal)"),
        ("grouped", "class_group was '1' and is now '2' (and train_loader)"),
        ("encoder", "audio_encoder was '!new:emoq_modules.FbankEncoder n_mels"),
    ):
        error = refused(capfd, results, STAGE2, *presets[preset])
        assert f"stage1 holds a stage 1 with other settings: {says}" in error
        assert "Choose another --variant or --results_folder" in error
    assert snapshot(results) == before


@pytest.mark.parametrize("done", [True, False])
def test_a_table_and_a_choice_do_not_start_from_it_either(
    results, presets, capfd, done
):
    if not done:
        shutil.rmtree(results / RUN / "stage2")
    options = "--preset", "tests/tiny.yaml", "--results_folder", str(results)
    options += presets["warmer"]
    with pytest.raises(ConfigurationError, match="temperature was '0.07'"):
        choose.main([STAGE2, *options, "--setting", "variant: emoq"])
    assert main(["reproduce", "table6", *options]) == 2
    assert "temperature was '0.07'" in capfd.readouterr().err


def test_a_stage_2_is_not_shown_beside_a_stage_1_that_came_after(
    results, presets, capfd
):
    says = "started from a stage 1 with other settings: temperature was '0.07'"
    shutil.rmtree(results / RUN / "stage1")
    assert says in refused(capfd, results, STAGE2, *presets["warmer"])
    train.main(arguments(results, STAGE1, *presets["warmer"]))
    assert says in refused(capfd, results, STAGE2, *presets["warmer"])


def test_a_person_may_start_from_any_stage_1_and_results_say_from_which(
    tmp_path, tiny_results, presets, capfd
):
    first = stage_1_of(tiny_results)
    options = *presets["warmer"], *first, "--folds", "[1, 2]", "--fold", "2"
    train.main(arguments(tmp_path, STAGE2, *options))
    folder = tmp_path / RUN.replace("fold1", "fold2") / "stage2"
    assert not (folder.parent / "stage1").exists()
    says = f"starts from {first[1]}, trained on tiny (emoq, fold 1, seed 1234)."
    log = (folder / "log.txt").read_text()
    assert says in log
    assert "of another fold, 1, and may have heard test utterances" in log
    settings = tiny_results / RUN / "stage1/hyperparams.yaml"
    assert (folder / "stage1.yaml").read_text() == settings.read_text()
    told = json.loads((folder / "results.json").read_text())
    assert told["fusion_weights"] == first[1]
    # Its score is none of this run's.
    assert "stage 1 " not in capfd.readouterr().out


def test_a_run_goes_on_in_a_results_folder_that_was_moved(results, capfd):
    stage_2 = results / "tiny/emoq/fold1-seed1234/stage2"
    left = stage_2 / "save/.weights.partial"  # by a process that was killed
    left.write_text("half")
    train.main(arguments(results))
    assert not left.exists()
    printed = capfd.readouterr().out
    assert "stage 1 " in printed and "stage 2 " in printed
