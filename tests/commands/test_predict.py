"""``emoq predict`` as a user of the command line meets it."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import asdict

import numpy as np
import pytest
import soundfile

from emoq_modules import EmotionRecognizer
from emoq_modules.commands.cli import main
from emoq_modules.commands.predict_inputs import Transcripts, find_recordings
from emoq_modules.errors import ConfigurationError

LABELS = ["angry", "happy", "sad"]


@pytest.fixture(scope="module")
def folder(tiny_results, tmp_path_factory):
    """Three recordings, two in a folder of their own, and what is none."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "more").mkdir()
    for number, name in enumerate(["a.wav", "more/b.wav", "more/c.wav"]):
        shutil.copy(tiny_results / f"data/test0{number}.wav", folder / name)
    (folder / "notes.txt").write_text("no audio")
    (folder / "more/._b.wav").write_text("of macOS")
    return folder


@pytest.fixture(scope="module")
def expected(recognizer_folder, folder):
    """What is recognized in the three."""
    recognizer = EmotionRecognizer.from_hparams(recognizer_folder)
    return list(recognizer.recognize(find_recordings([str(folder)])))


@pytest.fixture
def predict(recognizer_folder, capsys):
    """Runs the command in this process: status, output, and messages."""

    def run(*arguments):
        status = main(
            ["predict", "--model", recognizer_folder, *map(str, arguments)]
        )
        return status, *capsys.readouterr()

    return run


def read_csv(output):
    return list(csv.DictReader(io.StringIO(output)))


def test_nothing_is_imported_that_is_not_used(recognizer_folder, folder):
    run = f"""
import sys
from emoq_modules.commands.cli import main
assert main(["predict", "--model", {recognizer_folder!r}, {str(folder)!r}]) == 0
print(*sorted(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", run], capture_output=True, text=True, check=True
    )
    imported = set(done.stdout.splitlines()[-1].split())
    heavy = {"matplotlib", "pandas", "sklearn", "gradio", "scipy.signal"}
    assert "emoq_modules.inference.recognizer" in imported
    assert heavy & imported == set()


def test_csv_and_jsonl_hold_what_the_recognizer_says(predict, folder, expected):
    status, output, _ = predict(folder, "--format", "csv")
    assert status == 0
    rows = read_csv(output)
    for row, found in zip(rows, expected, strict=True):
        assert (row["path"], row["label"]) == (found.path, found.label)
        assert float(row["confidence"]) == pytest.approx(found.confidence)
        values = [float(row[label]) for label in LABELS]
        assert values == pytest.approx(list(found.posteriors.values()))
        assert (row["abstained"], row["error"]) == ("False", "")
    status, output, _ = predict(folder, "--format", "jsonl")
    rows = [json.loads(line) for line in output.splitlines()]
    for row, found in zip(rows, expected, strict=True):
        for name in ("posteriors", "confidence"):
            assert row[name] == pytest.approx(getattr(found, name))
            row[name] = getattr(found, name)
        assert row == asdict(found)


def test_table_is_for_people(predict, folder, expected):
    status, output, _ = predict(folder / "a.wav", folder / "no.wav")
    assert status == 1
    header, row, error = output.splitlines()
    columns = ["recording", "from", "to", "emotion", "confidence"]
    assert header.split() == columns + LABELS
    confidence = f"{expected[0].confidence:.2f}"
    assert row.split()[3:5] == [expected[0].label, confidence]
    assert error.endswith("there is no file " + str(folder / "no.wav"))
    _, output, _ = predict(folder / "a.wav", "--abstain_below", 1)
    assert output.splitlines()[1].split()[3] == "?"


def test_bad_file_is_a_row_and_the_status_1(predict, folder, tmp_path):
    (tmp_path / "bad.wav").write_text("not audio")
    (tmp_path / "nothing").mkdir()
    status, output, _ = predict(
        *(tmp_path / "bad.wav", folder / "a.wav", tmp_path / "nothing"),
        *(f"{tmp_path}/*.flac", "--format", "csv"),
    )
    assert status == 1
    bad, good, empty, pattern = read_csv(output)
    assert "cannot be read as audio" in bad["error"] and not bad["label"]
    assert good["label"] and not good["error"]
    assert "folder in which no recording is" in empty["error"]
    assert "there is no file" in pattern["error"]


def test_folders_patterns_and_lists_mean_their_files(
    folder, tmp_path, monkeypatch
):
    a, b, c = sorted(map(str, folder.rglob("[a-c].wav")))
    assert list(find_recordings([str(folder)])) == [a, b, c]
    assert list(find_recordings([f"{folder}/**/*.wav"])) == [a, b, c]
    assert list(find_recordings([f"{folder}/more/[c]*"])) == [c]
    notes = str(folder / "notes.txt")  # what is named is taken as it is
    assert list(find_recordings([notes, a])) == [notes, a]
    pattern = shutil.copy(a, tmp_path / "a[1].wav")  # is itself, where it is
    assert list(find_recordings([str(pattern)])) == [str(pattern)]
    (folder / "more/back").symlink_to(folder)
    assert list(find_recordings([f"{folder}/**/*.wav"])) == [a, b, c]
    (folder / "more/back").unlink()
    listed = f"\ufeff{b}\r\n\n{a}\n".encode()  # as Windows writes it
    lines = io.TextIOWrapper(io.BytesIO(listed))
    monkeypatch.setattr(sys, "stdin", lines)
    assert list(find_recordings([c, "-"])) == [c, b, a]


def test_without_standard_input_or_output_it_is_said(predict, monkeypatch):
    for name, source in (("stdin", "-"), ("stdout", "a.wav")):
        with monkeypatch.context() as closed:
            closed.setattr(sys, name, None)
            status, _, error = predict(source)
        assert status == 2 and "standard" in error


def test_folders_are_entered_through_links_and_the_rest_is_counted(
    folder, tmp_path, capsys
):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/linked").symlink_to(folder)
    (tmp_path / "here/back").symlink_to(tmp_path / "here")  # a loop ends
    (tmp_path / "here/a.WMV").touch()
    found = list(find_recordings([str(tmp_path / "here")]))
    names = [path.removeprefix(f"{tmp_path}/here/") for path in found]
    assert names == ["a.WMV", "linked/a.wav"] + [
        f"linked/more/{name}.wav" for name in "bc"
    ]
    assert "1 of the files in" in capsys.readouterr().err


def test_texts_come_from_the_option_or_a_file(
    predict, recognizer_folder, folder, tmp_path
):
    table = tmp_path / "words.csv"
    table.write_text('id,text,speaker\na,great yes,Ross\nb,"sorry, no",\n')
    options = ["--format", "jsonl"]
    _, output, messages = predict(folder, "--transcripts", table, *options)
    rows = [json.loads(line) for line in output.splitlines()]
    assert [row["text"] for row in rows] == ["great yes", "sorry, no", ""]
    assert f"1 of the recordings have no row in {table}: " in messages
    assert "more/c.wav" in messages
    recognizer = EmotionRecognizer.from_hparams(recognizer_folder)
    posteriors, *_ = recognizer.classify_file(
        folder / "a.wav", "great yes", "Ross"
    )
    values = list(rows[0]["posteriors"].values())
    assert values == pytest.approx(posteriors[0].tolist(), abs=1e-5)
    options += ["--text", "great yes", "--speaker", "Ross"]
    _, output, _ = predict(folder / "a.wav", *options)
    row = json.loads(output)
    assert row["posteriors"] == pytest.approx(rows[0]["posteriors"], abs=1e-5)


def test_a_manifest_of_a_run_gives_the_words_of_its_recordings(
    predict, tiny_results
):
    manifest = tiny_results / "tiny/manifests/fold1/test.json"
    rows = json.loads(manifest.read_text())
    wavs = [
        row["wav"].format(data_root=tiny_results / "data")
        for row in rows.values()
    ]
    options = "--transcripts", manifest, "--format", "jsonl"
    status, output, messages = predict(*wavs, *options)
    assert status == 0 and "no row" not in messages
    found = [json.loads(line)["text"] for line in output.splitlines()]
    assert found == [row["text"] for row in rows.values()]


def test_transcripts_are_found_by_path_name_or_id(tmp_path):
    table = tmp_path / "words.csv"
    (tmp_path / "calls").mkdir()
    wav = str(tmp_path / "calls/a.wav")
    for key in (wav, "calls/a.wav", "a.wav", "a"):
        table.write_text(f"\ufeffpath,text\n{key},hello\n", encoding="utf-8")
        assert Transcripts(table).find(wav) == ("hello", None)
    for name, key in (
        ("Mu\u0308ller.wav", "calls/M\u00fcller.wav"),
        ("M\u00fcller.wav", "Mu\u0308ller.wav"),
        ("a.wav", "calls\\a.wav"),
        ("a.wav", "C:\\data\\calls\\a.wav"),
    ):
        table.write_text(f"path,text\n{key},hello\n", encoding="utf-8")
        found = Transcripts(table).find(str(tmp_path / "calls" / name))
        assert found == ("hello", None)
    table.write_text("path,text\nx/a.wav,one\ny/a.wav,two\n")
    assert Transcripts(table).find("x/a.wav") == ("one", None)
    assert Transcripts(table).find("z/a.wav") == ("", None)  # which of them?
    table.write_text("path,text\na,one\nb,two\na,three\n")
    with pytest.raises(ConfigurationError, match="two different rows for a"):
        Transcripts(table)
    table.write_text("name;words\na;one\n")
    with pytest.raises(ConfigurationError, match="need the columns path and"):
        Transcripts(table)


def test_timeline_has_a_row_for_each_window(predict, tmp_path):
    samples = np.zeros(16000 * 3)
    samples[:16000] = 0.1 * np.sin(np.arange(16000))
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    options = ["--timeline", "--window_s", 1, "--hop_s", 1]
    status, output, _ = predict(
        *(tmp_path / "no.wav", tmp_path / "a.wav", *options),
        *("--format", "csv"),
    )
    assert status == 1
    error, *windows = read_csv(output)
    assert "there is no file" in error["error"]
    assert [row["start"] + row["end"] for row in windows] == ["01", "12", "23"]
    assert windows[0]["label"] in LABELS
    assert windows[2]["label"] == "" and windows[2]["abstained"] == "True"
    _, output, _ = predict(tmp_path / "a.wav", *options)
    assert output.splitlines()[-1].split()[3] == "(silence)"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--bogus", "1"], "knows no --bogus 1"),
        (["--batch_size", "0"], "batch_size is 0"),
        (["--abstain_below", "2"], "abstain_below is 2.0"),
        (["--device", "warp"], "--device warp is not to be had"),
        (["--vad", "a/b"], "--vad is for --timeline"),
        (["--window_s", "1"], "--window_s is for --timeline"),
        (["--batch_size", str(10**30)], "has to be from 1 to 10,000"),
        (["--device", "meta"], "--device meta is not to be had"),
        ([""], "A source is empty"),
        (["--asr_language", "de"], "--asr_language is for --asr"),
        (["--timeline", "--hop_s", "0"], "hop_s is 0.0"),
        (["--timeline", "--text", "hello"], "each of its windows"),
        (["--transcripts", "missing.csv"], "missing.csv cannot be read"),
    ],
)
def test_wrong_command_is_status_2(predict, folder, arguments, message):
    status, output, messages = predict(folder / "a.wav", *arguments)
    assert status == 2 and output == ""
    assert message in messages and "Traceback" not in messages


def test_model_that_is_none_is_status_2(capsys, tmp_path):
    assert main(["predict", "--model", str(tmp_path), "a.wav"]) == 2
    assert "holds no hyperparams.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        main(["predict", "a.wav"])
    assert exit_.value.code == 2


def test_pipe_closed_early_ends_it_quietly(predict, folder, monkeypatch):
    read, stdin = os.pipe()
    stdout, written = os.pipe()
    rows = []

    def reads_two_rows():
        lines = f"{folder}/a.wav\n" * 8
        with open(stdin, "w") as asks, open(stdout) as reads:
            asks.write(lines)
            asks.flush()
            # The first results come before the list of recordings ends.
            rows.extend([reads.readline(), reads.readline()])
            reads.close()
            asks.write(lines)

    reader = threading.Thread(target=reads_two_rows)
    reader.start()
    with open(read) as listed, open(written, "w") as printed:
        monkeypatch.setattr(sys, "stdin", listed)
        monkeypatch.setattr(sys, "stdout", printed)
        options = ["--format", "csv", "--batch_size", 1]
        status, _, messages = predict("-", *options)
        reader.join()
    assert rows[0].startswith("path,") and "a.wav" in rows[1]
    assert messages == ""
    assert status == 141


def test_name_that_is_no_text_comes_out_as_it_went_in(
    recognizer_folder, folder, tmp_path, capsysbinary
):
    name = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    shutil.copy(folder / "a.wav", name)
    options = ["--model", recognizer_folder, "--format", "csv"]
    assert main(["predict", str(tmp_path), *options]) == 0
    assert name in capsysbinary.readouterr().out


def test_sources_are_looked_for_once(predict, folder, monkeypatch):
    looked, walk = [], os.walk

    def counted(place, **options):
        looked.append(place)
        return walk(place, **options)

    monkeypatch.setattr(os, "walk", counted)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    status, output, messages = predict(folder, "--format", "csv")
    assert status == 0 and len(read_csv(output)) == 3
    assert looked == [str(folder)]
    assert "3/3" in messages  # the bar knows how many there are
