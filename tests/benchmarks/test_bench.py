"""The bench compares like with like, and its rows are well formed."""

import csv
import json
import time

import pytest
import torch
from ruamel.yaml import YAML

from benchmarks import bench, levers, rows as bench_rows
from benchmarks.machine import kept_for_backward, waiting_share
from benchmarks.reference import PlainStage2
from benchmarks.reference_audio import PlainEncoder
from benchmarks.workload import (
    read_utterances,
    with_lengths_of_iemocap,
    write_audio,
)
from emoq_modules import HuggingFaceEncoder
from emoq_modules.commands.options import exit_status
from emoq_modules.dataio.audio import read_audio
from emoq_modules.errors import ConfigurationError

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


def options(data, folder, preset=PRESET):
    """What a benchmark is called with: three utterances, once."""
    path = folder / "preset.yaml"
    path.write_text(preset)
    given = {"data": data, "preset": path, "utterances": 3, "repetitions": 1}
    return [str(part) for k, v in given.items() for part in (f"--{k}", v)]


ROWS = {
    "feature extraction: ours / in the order of the file": 3,
    "feature extraction: the reference's in the order of length / of the "
    "file": None,
    "feature extraction: batches as they are / of 60 s": None,
    "feature extraction: all of it / reading alone": None,
    "feature extraction: audio / time it takes": None,
    "feature extraction: operations / those of a matrix product": None,
    "stage-1 epoch: from the store / encoder in the step": 10,
    "stage-1 epoch: share of it that waits for data": None,
    "stage-2 step, batch 2: from the store / encoder in the step": 3,
    "stage-2 step, batch 2: frames given to both": None,
    "stage-2 step, batch 2: kept for the backward pass, ours / "
    "the reference": None,
    "stage-2 step, batch 2: operations / those of a matrix product": None,
    "prediction, batch 3: from the store / encoder in the step and "
    "generate": 10,
    "prediction, batch 3: frames given to both": None,
    "prediction, batch 3: encoder in both": None,
}


# What runs on a GPU, at a size that a CPU bears.
IN_BFLOAT16 = PRESET.replace("precision: fp32", "precision: bf16").replace(
    "llm_dtype: float32", "llm_dtype: bfloat16"
)


@pytest.mark.parametrize(
    ("preset", "scale"),
    [
        (PRESET, ["--scale", "small"]),
        (IN_BFLOAT16, ["--scale", "paper", "--device", "cpu"]),
    ],
    ids=["small", "paper"],
)
def test_rows_are_well_formed(data, preset, scale, tmp_path, capsys):
    output = ["--output", str(tmp_path / "bench.json")]
    bench.main([*options(data, tmp_path, preset), *scale, *output])
    rows = json.loads((tmp_path / "bench.json").read_text())
    assert {row["name"]: row["goal"] for row in rows} == ROWS
    for row in rows:
        assert list(row) == [
            *("name", "ours", "reference", "unit", "ratio", "goal", "met")
        ]
        assert row["ours"] > 0
        if row["reference"] is None:
            assert row["ratio"] is None
        elif row["unit"] in ("s", "MB"):
            assert row["ratio"] == pytest.approx(row["reference"] / row["ours"])
        else:
            assert row["ratio"] == pytest.approx(row["ours"] / row["reference"])
        if row["goal"] is None:
            assert row["met"] is None
        else:
            assert row["met"] == (row["ratio"] >= row["goal"])
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert len(table) == 2 + len(rows)
    assert all(line.count("|") == 8 for line in table)


def test_levers_are_measured_one_by_one(data, tmp_path, capsys):
    levers.main(options(data, tmp_path))
    printed = capsys.readouterr().out
    head, table = printed.split("\n\n")
    assert "are the same in all" in head
    for line in table.splitlines()[2:]:
        _, name, ours, reference, *_ = (
            part.strip() for part in line.split("|")
        )
        assert float(ours) > 0 < float(reference), name
    assert len(table.splitlines()) == 2 + 8


def test_different_results_are_not_compared(data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        PlainStage2,
        "predict",
        lambda self, audio, tokens, prompts: (
            torch.eye(7)[: len(prompts)],
            prompts,
        ),
    )
    with pytest.raises(AssertionError, match="not close"):
        bench.main(options(data, tmp_path))


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


def test_utterances_may_have_the_lengths_of_iemocap(data, tmp_path):
    rows, _ = read_utterances(data, 3)
    (tmp_path / "IEMOCAP").mkdir()
    write(
        tmp_path / "IEMOCAP/durations.csv",
        "session emotion seconds",
        [[1, "neu", seconds] for seconds in (5.0, 1.0, 2.0, 4.0, 3.0)],
    )
    rows.reverse()  # the longest of MELD first
    changed = with_lengths_of_iemocap(rows, tmp_path)
    # A sixth, half and five sixths of the way through 1, 2, 3, 4, 5.
    lengths = [row["duration"] for row in changed]
    assert lengths == pytest.approx([1 + 4 * k / 6 for k in (5, 3, 1)])
    assert [row["text"] for row in changed] == [row["text"] for row in rows]
    with pytest.raises(ConfigurationError, match="IEMOCAP's durations"):
        with_lengths_of_iemocap(rows, data)


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
    if not torch.cuda.is_available():
        no_gpu = error("--scale", "paper", "--data", str(data))
        assert "--scale paper needs a GPU, and torch sees none" in no_gpu
    assert not (tmp_path / "bench.json").exists()


def test_frames_of_the_reference_are_those_of_transformers():
    encoder = HuggingFaceEncoder(YAML().load(PRESET)["audio_source"])
    wavs = [torch.randn(n).numpy() for n in (9000, 16000)]
    found, counts = PlainEncoder(encoder).train().frames(wavs)
    for wav, frames, count in zip(wavs, found, counts, strict=True):
        wav = (wav - wav.mean()) / (wav.var() + 1e-7) ** 0.5
        alone = encoder.model(torch.from_numpy(wav)[None]).last_hidden_state[0]
        assert len(alone) == count
        torch.testing.assert_close(frames[:count], alone, atol=1e-4, rtol=1e-4)


def test_what_is_kept_for_the_backward_pass_leaves_weights_out():
    layer = torch.nn.Linear(10, 3)
    with kept_for_backward({"layer": layer}) as kept:
        layer(torch.rand(4, 10)).t().mean()
        assert kept() == 4 * 10 * 4  # the input; not the weights
    with kept_for_backward({}) as kept:
        layer(torch.rand(4, 10, requires_grad=True))
        assert kept() == 4 * 10 * 4 + 10 * 3 * 4


def test_waiting_is_the_time_in_which_a_loader_gives_nothing():
    class Slow(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            time.sleep(0.02)
            return index

    def epoch(work_s):
        for _ in torch.utils.data.DataLoader(Slow()):
            time.sleep(work_s)

    waits = waiting_share(lambda: epoch(0.0))
    assert waiting_share(lambda: epoch(0.06)) < waits
    assert waits > 0.3
