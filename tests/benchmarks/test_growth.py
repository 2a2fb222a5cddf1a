"""The growth of cost is measured by what a run does, on what a run reads."""

import json
import os

import pytest
import soundfile
import torch

from benchmarks import growth
from emoq_modules.dataio import datasets as dataio, feature_extraction
from emoq_modules.dataio.feature_store import FeatureStore
from emoq_modules.dataio.manifest import COLUMNS
from emoq_modules.dataio.manifest_reader import read_manifest
from emoq_modules.training import run_data

UTTERANCES = 2000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("growth")
    growth.simulate_corpus(folder, UTTERANCES)
    return folder


@pytest.fixture
def no_audio(monkeypatch):
    """No audio is opened: the files are empty, and taken for read."""

    def refuse(path, *arguments, **options):
        raise AssertionError(f"{path} has been opened")

    monkeypatch.setattr(soundfile, "SoundFile", refuse)
    monkeypatch.setattr(soundfile, "read", refuse)


@pytest.fixture
def one_process(monkeypatch):
    """Starting others takes longer than all that they do here."""
    monkeypatch.setattr(growth, "_WORKERS", 0)
    monkeypatch.setattr(
        growth, "_in_new_process", lambda function, *given: function(*given)
    )


def test_rows_are_well_formed(tmp_path, one_process):
    rows = growth.measure_growth(tmp_path, UTTERANCES, batches=2)
    assert [row.name for row in rows] == [
        "start-up, 2,000 rows",
        "the same, the first time after the manifests have changed",
        "memory, 2 h of audio beyond 0.02 h",
        "data of an epoch, an hour of 2 / of 0.2",
    ]
    assert [row.unit for row in rows] == ["s", "s", "MB", "times"]
    assert [row.goal for row in rows] == [10, None, 250, 1.1]
    for row in rows:
        assert row.reference is row.ratio is None
        if row.goal is not None:
            assert row.met == (row.ours <= row.goal)
    assert min(rows[0].ours, rows[1].ours, rows[3].ours) > 0


def test_what_is_simulated_is_read_by_the_code_of_a_run(
    corpus, no_audio, one_process, monkeypatch
):
    called = []

    def watch(owner, name):
        function = getattr(owner, name)

        def watched(*arguments, **options):
            called.append(name)
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, watched)

    watch(run_data, "read_manifest")
    watch(run_data, "build_datasets")
    watch(dataio, "read_rows")
    watch(FeatureStore, "load")
    watch(feature_extraction, "_batches")  # of what is missing in the store
    cost = growth.measure_corpus(corpus, batches=3)
    assert called.count("read_manifest") == 3
    assert called.count("load") == 2 * 4 * 8
    assert {"build_datasets", "read_rows"} < set(called)
    assert "_batches" not in called
    assert cost.start_s > 0 and cost.cpu_s_per_hour > 0


def test_each_corpus_has_a_process_of_its_own():
    assert growth._in_new_process(os.getpid) != os.getpid()


def test_the_corpus_is_as_large_as_it_says(corpus, no_audio):
    labels, root = growth._LABELS, corpus / "audio"
    manifests = run_data.read_manifests(
        {
            "manifest_folder": corpus / "manifests",
            "labels": labels,
            "data_root": root,
            "feature_store": corpus / "store",
        }
    )
    ids = [id_ for manifest in manifests.values() for id_ in manifest]
    assert len(set(ids)) == len(ids) == UTTERANCES
    store = FeatureStore(corpus / "store", growth._Encoder().identity)
    assert len(store) == UTTERANCES
    for manifest in manifests.values():
        assert store.holds(manifest.digests).all()
    first = next(iter(manifests["train"].values()))
    assert torch.equal(store.load(first["wav"]), torch.zeros(180, 1))


def test_manifests_are_those_that_the_project_would_write(corpus):
    # But for the files' audio, which is empty.
    with pytest.raises(ValueError, match="has bad audio"):
        read_manifest(corpus / "manifests/test.json", growth._LABELS, corpus)
    rows = json.loads((corpus / "manifests/test.json").read_text())
    assert len(rows) == UTTERANCES // 100
    for row in rows.values():
        assert tuple(row) == COLUMNS[1:]


def test_a_simulation_that_was_tampered_with_is_not_measured(tmp_path):
    growth.simulate_corpus(tmp_path, 100)
    (tmp_path / "manifests/dialogues.json").write_text("{}")
    with pytest.raises(AssertionError, match="not what was simulated"):
        growth.measure_corpus(tmp_path, 1)
