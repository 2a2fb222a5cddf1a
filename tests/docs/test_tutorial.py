"""The tutorial runs, with no network, and shows what its words promise."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from emoq_modules.dataio.audio import audio_duration
from emoq_modules.dataio.manifest_reader import read_manifest
from emoq_modules.evaluation.results import read_predictions
from recipes.demo.dialogues import plan_corpus
from recipes.demo.voices import VERSION

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"
RUN = "tiny/emoq/fold1-seed1234/stage2"
LABELS = ["angry", "happy", "sad"]


@pytest.fixture(scope="module")
def results(tiny_results):
    return tiny_results


@pytest.fixture(scope="module")
def row(results):
    """The first test utterance."""
    manifest = results / "tiny/manifests/fold1/test.json"
    rows = read_manifest(manifest, LABELS, results / "data")
    return {"id": next(iter(rows)), **next(iter(rows.values()))}


@pytest.fixture(scope="module")
def notebook(results, row, tmp_path_factory):
    """The tutorial after its cells have run, with a tiny trained system."""
    notebook = nbformat.read(TUTORIAL, as_version=4)
    settings = {
        "EMOQ_MODEL": str(results / RUN / "recognizer"),
        "EMOQ_RECORDING": row["wav"],
        "EMOQ_TEXT": row["text"],
        "EMOQ_SPEAKER": row["speaker"],
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "IPYTHONDIR": str(tmp_path_factory.mktemp("ipython")),
    }
    client = NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        # Jupyter starts a notebook in its own folder.
        resources={"metadata": {"path": str(TUTORIAL.parent)}},
    )
    client.execute(env={**os.environ, **settings})
    return {cell.id: cell for cell in notebook.cells}


def printed(cell):
    return "".join(
        output.text for output in cell.outputs if output.get("name") == "stdout"
    )


def percentages(line):
    return [float(number) for number in re.findall(r"([\d.]+)%", line)]


def test_it_prints_the_posteriors_of_the_run(notebook, results, row):
    stats = read_predictions(results / RUN)
    expected = stats.posteriors[stats.ids.index(row["id"])]
    _, *lines = printed(notebook["classify"]).splitlines()
    assert [line.split()[0] for line in lines] == LABELS
    shares = [percentages(line)[0] for line in lines]
    assert shares == pytest.approx((100 * expected).tolist(), abs=0.06)


def test_it_shows_the_attention_of_every_query_to_every_frame(notebook, row):
    instants = round(16000 * audio_duration(row["wav"])) // 160 + 1  # 10 ms
    # In tests/tiny.yaml: cross-attention in one of two layers, 3 queries.
    expected = f"layers, heads, queries, frames: 1 2 3 {-(-instants // 4)}\n"
    assert printed(notebook["record"]) == expected
    (picture,) = [
        output.data["image/png"]
        for output in notebook["plot"].outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(picture) > 10_000


def test_its_recipe_finds_the_class_and_the_sound(notebook):
    losses = re.findall(r"loss ([\d.]+)", printed(notebook["brain"]))
    assert float(losses[-1]) < 0.8 * float(losses[0])
    accuracy, attention = printed(notebook["tested"]).splitlines()
    assert percentages(accuracy)[0] > 2 * percentages(accuracy)[1]
    assert percentages(attention)[0] > 2 * percentages(attention)[1]


def test_it_is_kept_without_outputs():
    for cell in nbformat.read(TUTORIAL, as_version=4).cells:
        assert not cell.get("outputs") and not cell.get("execution_count")


def test_its_recording_is_one_that_make_demo_leaves():
    cell = nbformat.read(TUTORIAL, as_version=4).cells[1].source
    corpus = plan_corpus(1234, num_speakers=24, num_dialogues=72, num_turns=10)
    (chosen,) = [u for u in corpus.utterances if f"{u.id}.wav" in cell]
    folder = f"demo/corpus/demo-v{VERSION}-seed1234-24x72x10/{chosen.dialogue}"
    assert f"results/{folder}/{chosen.id}.wav" in cell
    assert chosen.text in cell
    assert chosen.split == "test"
    assert (chosen.voice_emotion, chosen.word_emotion) == ("sad", "neutral")
