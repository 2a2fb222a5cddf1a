"""A run's page holds all it shows."""

import base64
import io
import json
import re

import pytest
import soundfile
import torch

from emoq_modules.evaluation.metrics import EmotionStats
from emoq_modules.evaluation.run_page import find_probes, write_page
from tests.corpus_folders import write

PNG = b"\x89PNG"


@pytest.fixture
def stats():
    """14 utterances of "sad", of which the last 11 are taken for "joy <3"."""
    stats = EmotionStats(["joy <3", "sad"])
    right = torch.linspace(0.6, 0.01, 14)
    posteriors = torch.stack([1 - right, right], dim=1)
    ids = [f"u{number}" for number in range(14)]
    stats.append(ids, posteriors, torch.ones(14, dtype=torch.long))
    return stats


def listen(utterance):
    samples = torch.full((160,), int(utterance[1:]) / 100)
    return samples, f"Transcript: <{utterance}>\nEmotion:"


def test_the_most_certain_mistakes_come_first(stats, tmp_path):
    write_page(tmp_path, "A run", stats, [("All.", PNG)], listen)
    page = (tmp_path / "index.html").read_text()
    headings = re.findall("<h3>(.*)</h3>", page)
    assert headings[0] == "joy &lt;3 for sad, at 0.99"
    assert len(headings) == 10 and "10 of 11" in page
    assert re.findall("Transcript: &lt;(u[0-9]+)&gt;", page) == [
        f"u{number}" for number in range(13, 3, -1)
    ]
    sounds = re.findall('src="data:audio/flac;base64,(.*)"', page)
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sounds[0])))
    assert rate == 16000
    assert samples == pytest.approx([0.13] * 160, abs=1e-4)
    assert "http" not in page


def test_figures_stand_beside_those_of_a_probe(stats, tmp_path):
    place = "tones/probe-whisper-base/fold1-seed7/stage1/results.json"
    told = {"corpus": "tones", "fold": 1, "layer": 3, "n": 12}
    told |= {"WA": 91.26, "UA": 90.0, "WF1": 1.0}
    write(tmp_path / place, json.dumps(told))
    probes = find_probes(tmp_path / "tones", 1, 7)
    assert find_probes(tmp_path / "tones", 2, 7) == []
    notes = ["Said by machine."]
    write_page(tmp_path, "A run", stats, [], listen, probes, notes)
    page = (tmp_path / "index.html").read_text()
    assert "<td>linear probe of whisper-base, layer 3</td><td>91.3</td>" in page
    assert "Said by machine." in page


def test_what_is_not_heard_has_no_player(stats, tmp_path):
    write_page(tmp_path, "A run", stats, [], lambda _: (None, "Oh."))
    page = (tmp_path / "index.html").read_text()
    assert "<audio" not in page and "Oh." in page
