"""The bench compares like with like, and its rows are well formed."""

import csv
import json

import pytest
import torch

from benchmarks import bench, rows as bench_rows
from benchmarks.reference import PlainStage2
from benchmarks.workload import read_utterances, write_audio
from emoq_modules.command_line import exit_status
from emoq_modules.dataio import read_audio

PRESET = """
audio_source:
    model_type: hubert
    hidden_size: 16
    num_hidden_layers: 1
    num_attention_heads: 2
    intermediate_size: 32
    conv_dim: [16, 16, 16, 16, 16, 16, 16]
    feat_extract_norm: layer
    num_conv_pos_embeddings: 8
    num_conv_pos_embedding_groups: 2
audio_dim: 16
text_encoder:
    hidden_size: 16
    num_hidden_layers: 1
    num_attention_heads: 2
    intermediate_size: 32
embedding_dim: 16
batch_size: 2
precision: fp32
num_workers: 0
stage2:
    llm:
        model_type: qwen2
        vocab_size: 2000
        hidden_size: 16
        num_hidden_layers: 1
        num_attention_heads: 2
        num_key_value_heads: 1
        intermediate_size: 32
    llm_dtype: float32
"""
EMOTIONS = ["neutral", "anger", "joy", "sadness"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder as of the real data: eight utterances, one without a clip."""
    data = tmp_path_factory.mktemp("data")
    (data / "MELD").mkdir()
    write(
        data / "MELD/train_sent_emo.csv",
        "Utterance Speaker Emotion Dialogue_ID Utterance_ID",
        [
            [f"Oh {'no ' * turn}!", "Ross", EMOTIONS[turn % 4], 3, turn]
            for turn in range(8)
        ],
    )
    durations = [["train", 3, turn, 0.1 + turn / 10] for turn in range(7)]
    durations[5][-1] = 300.0
    write(
        data / "MELD/clip_durations.csv",
        "split dialogue_id utterance_id seconds",
        [["dev", 3, 0, 9.0], *reversed(durations)],
    )
    return data


def write(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(), *rows])


@pytest.fixture
def arguments(data, tmp_path):
    preset = tmp_path / "tiny.yaml"
    preset.write_text(PRESET)
    output = tmp_path / "bench.json"
    given = {"data": data, "preset": preset, "output": output}
    given |= {"utterances": 3, "repetitions": 1}
    return [str(part) for k, v in given.items() for part in (f"--{k}", v)]


def test_rows_are_well_formed(arguments, tmp_path, capsys):
    bench.main(arguments)
    rows = json.loads((tmp_path / "bench.json").read_text())
    assert len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        assert list(row) == [
            *("name", "ours", "reference", "unit", "ratio", "goal", "met")
        ]
        assert row["unit"] == "s"
        assert row["ours"] > 0
        assert row["ratio"] == pytest.approx(row["reference"] / row["ours"])
        if row["goal"] is None:
            assert row["met"] is None
        else:
            assert row["met"] == (row["ratio"] >= row["goal"])
    goals = {
        row["name"].split(":")[0]: row["goal"] for row in rows if row["goal"]
    }
    assert goals == {
        "stage-1 epoch": 10,
        "stage-2 step, batch 2": 3,
        "prediction, batch 3": 10,
    }
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert len(table) == 2 + len(rows)
    assert all(line.count("|") == 8 for line in table)


def test_different_results_are_not_compared(arguments, monkeypatch):
    monkeypatch.setattr(
        PlainStage2,
        "predict",
        lambda self, audio, tokens, texts, speakers: (
            torch.eye(7)[: len(texts)],
            texts,
        ),
    )
    with pytest.raises(AssertionError, match="not close"):
        bench.main(arguments)


def test_times_are_medians_by_turns_without_the_first(monkeypatch):
    now, calls = 0.0, []
    seconds = {"ours": [90, 1, 2, 9], "reference": [0, 8, 16, 12]}
    monkeypatch.setattr(bench_rows.time, "perf_counter", lambda: now)

    def work(name):
        nonlocal now
        calls.append(name)
        now += seconds[name].pop(0)

    row = bench_rows.compare(
        "any",
        lambda: work("ours"),
        lambda: work("reference"),
        repetitions=3,
        goal=6.5,
        parts=2,
    )
    assert calls == ["ours", "reference"] * 4
    assert (row.ours, row.reference, row.ratio) == (1.0, 6.0, 6.0)
    assert row.met is False


def test_utterances_have_the_lengths_of_their_clips(data, tmp_path):
    rows, texts = read_utterances(data, 3)
    assert [row["turn"] for row in rows] == [0, 2, 4]  # of seven with a clip
    assert [row["duration"] for row in rows] == pytest.approx([0.1, 0.3, 0.5])
    assert [row["emotion"] for row in rows] == ["neutral", "joy", "neutral"]
    assert rows[1]["text"] in texts
    assert len(texts) == 7
    everything, _ = read_utterances(data, 7)
    assert max(row["duration"] for row in everything) == 30
    words = {row["emotion"] for row in everything}
    assert words == {"neutral", "angry", "joy", "sadness"}  # the prompt's
    named = write_audio(rows, tmp_path / "audio")
    for row in named.values():
        samples = read_audio(row["wav"])
        assert len(samples) == round(16000 * row["duration"])


def test_what_cannot_be_measured_is_told(data, tmp_path, capsys):
    def error(*arguments):
        output = ["--output", str(tmp_path / "bench.json")]
        assert exit_status(bench.main, [*arguments, *output]) == 2
        return capsys.readouterr().err

    missing = error("--data", str(tmp_path / "nowhere"))
    assert "nowhere/MELD/clip_durations.csv is not there" in missing
    assert "--data" in missing
    few = error("--data", str(data), "--utterances", "8")
    assert "has 7 utterances with a duration, and --utterances is 8" in few
    none = error("--data", str(data), "--repetitions", "0")
    assert "--repetitions have to be 1 or more" in none
    assert not (tmp_path / "bench.json").exists()
