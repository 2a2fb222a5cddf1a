"""Which runs a table is made of, and that each is run once."""

import fcntl
import json
import multiprocessing
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import train
from emoq_modules.commands import reproduce_runs as reproduce
from emoq_modules.commands.cli import main
from emoq_modules.commands.reproduce_runs import (
    describe_plan,
    plan,
    read_table,
    run_all,
)
from emoq_modules.errors import ConfigurationError
from emoq_modules.training.run_folder import LOCKS_VARIABLE

TINY = "tests/tiny.yaml"


def data(results, *more):
    return ["--data_folder", "/data", "--results_folder", str(results), *more]


def tiny_plan(results, number=6, **kwargs):
    folder = ["--results_folder", str(results)]
    return plan(read_table(number), [TINY], folder, **kwargs)


def reproduce_table_6(results, *options):
    folder = ["--preset", TINY, "--results_folder", str(results)]
    return main(["reproduce", "table6", *folder, *options])


def finish(run, **facts):
    """Leaves what a finished run leaves, as far as it is looked at here."""
    for stage in run.stages:
        stage.folder.mkdir(parents=True, exist_ok=True)
        (stage.folder / "hyperparams.yaml").write_text(stage.hparams_yaml)
        told = ("corpus", "variant", "fold", "stage")
        known = {key: stage.hparams[key] for key in told}
        text = json.dumps({**known, **facts})
        (stage.folder / "results.json").write_text(text)


@pytest.fixture
def started(monkeypatch):
    """Runs that were started; each finishes at once, if not told to fail."""
    runs, failing = [], []

    def run_it(run, locks):
        runs.append(run)
        if run.row in failing:
            return 1
        finish(run)
        return 0

    monkeypatch.setattr(reproduce, "_run", run_it)
    return SimpleNamespace(runs=runs, failing=failing)


# --- The plan -----------------------------------------------------------------


def test_table_5_is_four_variants_that_get_the_options(tmp_path):
    runs = plan(read_table(5), arguments=data(tmp_path, "--lr", "0.25"))
    variants = [run.stages[-1].hparams["variant"] for run in runs]
    losses = ["loss_cross_entropy", "loss_focal", "loss_scl"]
    assert variants == [*losses, "emoq"]
    for run in runs:
        at = run.command.index("--lr")
        assert run.command[at + 1] == "0.25"
        assert [s.hparams["stage"] for s in run.stages] == [1, 2]
        assert all(stage.hparams["lr"] == 0.25 for stage in run.stages)
        assert run.folder.is_relative_to(tmp_path)


def test_folds_and_seeds_make_runs_of_their_own(tmp_path):
    runs = plan(read_table(1), (), data(tmp_path), "2,5", [1, 2], ["EmoQ"])
    places = [(run.fold, run.seed) for run in runs]
    assert places == [(2, 1), (5, 1), (2, 2), (5, 2)]
    assert len({run.folder for run in runs}) == 4
    assert len(plan(read_table(1), (), data(tmp_path))) == 10  # 2 rows x 5


def test_an_option_of_stage_2_alone_is_not_for_the_baseline(tmp_path):
    options = data(tmp_path, "--word_weight", "3.0", "--device", "cpu")
    baseline, emoq = plan(read_table(1), (), options, "1")
    assert "--word_weight" not in baseline.command
    assert "--word_weight" in emoq.command
    assert "--device" in baseline.command and "--device" in emoq.command


def test_rows_presets_win_over_those_that_are_laid_over_the_table(tmp_path):
    for run in tiny_plan(tmp_path, 4):
        assert run.stages[-1].hparams["corpus"] == "tiny"
    (text_only,) = tiny_plan(tmp_path, 4, rows=["Text-only"])
    values = text_only.stages[-1].hparams
    assert values["audio_encoder"] is None and values["batch_size"] == 4


@pytest.mark.parametrize(
    ("number", "kwargs", "message"),
    [
        (1, {"rows": ["EmoQQ"]}, "no row 'EmoQQ' .* HuBERT large, EmoQ"),
        (1, {"rows": ["MSTR"]}, "no row 'MSTR' that can be run"),
        (1, {"folds": "6"}, "no fold 6 in iemocap4; its folds are 1, 2"),
        (4, {"arguments": ["--num_querys", "3"]}, "Did you mean num_queries"),
        (4, {"arguments": ["--gamma", "3"]}, "--gamma is no key of the exp"),
        (4, {"presets": ["no.yaml"]}, "There is no file no.yaml"),
        (4, {"arguments": ["--variant", "mine"]}, "would both write to .*mine"),
    ],
)
def test_what_does_not_exist_is_refused(tmp_path, number, kwargs, message):
    kwargs["arguments"] = data(tmp_path, *kwargs.get("arguments", ()))
    with pytest.raises(ConfigurationError, match=message):
        plan(read_table(number), **kwargs)


def test_a_package_without_the_repository_says_so(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(reproduce, "PROJECT", tmp_path)
    assert main(["reproduce", "table4", *data(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "needs a clone of EmoQ's repository" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table4"], "data_folder has no value: give it as --data_folder"),
        (["table4", "--seed", "x"], "--seed is 'x'"),
    ],
)
def test_a_wrong_command_is_answered_in_a_line(capsys, arguments, message):
    assert main(["reproduce", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_seed_or_row_given_twice_is_run_once(tmp_path, capsys):
    options = [*data(tmp_path), "--dry_run", "--seed", "5,5"]
    rows = ["--row", "EmoQ", "--row", "EmoQ"]
    assert main(["reproduce", "table3", *options, *rows]) == 0
    assert "1 of 1 runs are to do." in capsys.readouterr().out


def test_the_plan_tells_time_from_finished_runs(tmp_path):
    table, options = read_table(6), data(tmp_path, "--number_of_epochs", "10")
    end_to_end, emoq = plan(table, arguments=options)
    unknown = describe_plan([end_to_end, emoq])
    assert "time not known yet" in unknown
    assert "The time is known when a first run has been measured." in unknown
    finish(end_to_end, epoch_seconds=20.0, train_utterances=100)
    manifest = Path(emoq.stages[-1].hparams["manifest_folder"], "train.json")
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps(dict.fromkeys(map(str, range(300)), {})))
    text = describe_plan([end_to_end, emoq])
    done, left = text.splitlines()[:2]
    assert done.endswith("  done")
    # 0.2 s an utterance and epoch, of stage 2; of stage 1 nothing is known.
    assert "stage 2: 300 utterances x 10 epochs, 10 min" in left
    assert "stage 1: 300 utterances x 10 epochs, time not known yet" in left
    assert "At most 10 min, and 1 stages not yet measured" in text
    assert text.splitlines()[-1].startswith("python train.py hparams/emoq_")


# --- Running ------------------------------------------------------------------


def test_what_is_done_is_not_run_again(tmp_path, started):
    runs = tiny_plan(tmp_path)
    finish(runs[0])
    assert run_all(runs) == []
    assert started.runs == [runs[1]]
    assert run_all(runs) == []
    assert len(started.runs) == 1


def test_what_was_made_with_other_settings_is_not_taken_for_done(
    tmp_path, started, capsys
):
    finish(tiny_plan(tmp_path)[1])
    assert reproduce_table_6(tmp_path, "--lr", "7") == 2
    assert "lr was '0.01' and is now" in capsys.readouterr().err
    assert started.runs == []


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path, started):
    first, second = tiny_plan(tmp_path)
    first.folder.mkdir(parents=True)
    with (first.folder / ".lock").open("a") as lock:
        # Against a shared lock only an exclusive one is refused.
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert run_all([first, second], wait=False) == [first]
    assert started.runs == [second]
    assert run_all([first, second], wait=False) == []
    assert started.runs == [second, first]


def test_it_waits_for_what_another_process_is_at(
    tmp_path, started, monkeypatch, caplog
):
    first, second = tiny_plan(tmp_path)
    first.folder.mkdir(parents=True)
    lock = (first.folder / ".lock").open("a")
    lock.write("Process 7 on gpu3,")
    lock.flush()
    fcntl.flock(lock, fcntl.LOCK_EX)

    def the_other_finishes(_):
        finish(first)
        lock.close()

    monkeypatch.setattr(reproduce.time, "sleep", the_other_finishes)
    caplog.set_level("INFO", logger="emoq_modules")
    assert run_all([first, second]) == []
    assert started.runs == [second]
    assert "Waiting for 1 runs: Process 7 on gpu3, is at" in caplog.text


def test_after_a_run_that_fails_the_others_go_on(tmp_path, started):
    runs = tiny_plan(tmp_path)
    started.failing.append(runs[0].row)
    assert run_all(runs) == [runs[0]]
    assert started.runs == runs and runs[1].is_done


def test_the_command_names_what_is_not_finished_and_writes_a_report(
    tmp_path, started, capsys
):
    failing, busy = tiny_plan(tmp_path)
    started.failing.append(failing.row)
    busy.folder.mkdir(parents=True)
    with (busy.folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert reproduce_table_6(tmp_path, "--no_wait") == 1
    assert started.runs == [failing]
    captured = capsys.readouterr()
    assert f"Not finished: {failing}" in captured.err
    assert f"Not finished: {busy}" in captured.err
    assert "Missing: two-stage training: not run" in captured.err
    report = tmp_path / "reports/tiny/table6/report.html"
    assert report.exists() and str(report) in captured.out


# --- Stopped ------------------------------------------------------------------


def train_here(run, locks):
    os.environ[LOCKS_VARIABLE] = ",".join(str(f.fileno()) for f in locks)
    return train.run(run.command[1:])


def test_killed_it_goes_on_and_at_last_trains_nothing(
    tmp_path, monkeypatch, capfd, caplog
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (run,) = tiny_plan(tmp_path, rows=["end-to-end training"])
    command = [
        *(tmp_path, "--row", run.row, "--number_of_epochs", "2"),
        *("--ckpt_interval_minutes", "0", "--ckpt_interval_steps", "2"),
    ]
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=reproduce_table_6, args=command)
    with monkeypatch.context() as patch:
        patch.setattr(reproduce, "_run", train_here)
        process.start()
    try:
        # A checkpoint is whole once its list of files is there.
        saved = run.folder / "save"
        deadline = time.monotonic() + 200
        while not list(saved.glob("*/contents.json")):
            assert process.exitcode is None, capfd.readouterr().err
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.join()
    assert not run.is_done

    capfd.readouterr()
    assert reproduce_table_6(*command) == 0
    printed = capfd.readouterr().out
    assert f"Loading a checkpoint from {saved}" in printed
    assert f"Run 1 of 1: {run}" in caplog.text
    assert run.is_done
    report = tmp_path / "reports/tiny/table6/report.html"
    assert str(report) in printed

    files = [p for p in tmp_path.glob("tiny/*/*/stage*/*") if p.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    html = report.read_bytes()
    caplog.clear()
    assert reproduce_table_6(*command) == 0
    assert "Run " not in caplog.text
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert report.read_bytes() == html
