"""What a corpus takes is measured by what a run does, on what a run reads."""

import pytest
import soundfile

from benchmarks import scale
from emoq_modules.dataio import feature_extraction


def test_start_and_memory_of_a_simulated_corpus(tmp_path, monkeypatch):
    def refuse(path, *arguments, **options):
        raise AssertionError(f"{path} has been opened")

    # Nothing is read nor computed: all of it is in the store.
    monkeypatch.setattr(soundfile, "SoundFile", refuse)
    monkeypatch.setattr(feature_extraction, "_encode", refuse)
    scale.simulate_corpus(tmp_path, 1000)
    start, _, memory = scale.measure(tmp_path)
    assert (start.name, start.unit, start.goal) == (
        "start, 1,000 rows",
        "s",
        10,
    )
    assert (memory.unit, memory.goal) == ("MB", 1000)
    assert 0 < start.ours < 10 and 0 < memory.ours < 1000
    next((tmp_path / "audio").rglob("*.wav")).write_bytes(b"changed")
    with pytest.raises(AssertionError, match="has been opened"):
        scale.measure(tmp_path)
