"""The tutorial runs, and shows what its words promise."""

import json
import re
import sys
from contextlib import redirect_stdout
from io import StringIO

import matplotlib
import pytest
from IPython.core.interactiveshell import InteractiveShell
from ruamel.yaml import YAML
from traitlets.config import Config

from emoq_modules.dataio.audio import audio_duration
from emoq_modules.dataio.manifest_reader import read_manifest
from emoq_modules.evaluation.results import read_predictions
from recipes.demo.dialogues import plan_corpus
from recipes.demo.voices import VERSION
from tests.corpus_folders import ROOT

CELLS = {
    cell["id"]: cell
    for cell in json.loads((ROOT / "docs/tutorial.ipynb").read_text())["cells"]
}
RUN = "tiny/emoq/fold1-seed1234/stage2"
LABELS = ["angry", "happy", "sad"]


@pytest.fixture(scope="module")
def row(tiny_results):
    """The first test utterance."""
    manifest = tiny_results / "tiny/manifests/fold1/test.json"
    rows = read_manifest(manifest, LABELS, tiny_results / "data")
    return {"id": next(iter(rows)), **next(iter(rows.values()))}


@pytest.fixture(scope="module")
def shown(tiny_results, row, tmp_path_factory):
    """What each cell prints and shows, with a tiny trained system."""
    settings = {
        "EMOQ_MODEL": str(tiny_results / RUN / "recognizer"),
        "EMOQ_RECORDING": row["wav"],
        "EMOQ_TEXT": row["text"],
        "EMOQ_SPEAKER": row["speaker"],
        "IPYTHONDIR": str(tmp_path_factory.mktemp("ipython")),
    }
    backend, shown = matplotlib.get_backend(), {}
    with pytest.MonkeyPatch.context() as patches:
        for name, value in settings.items():
            patches.setenv(name, value)
        # Jupyter starts a notebook in its own folder.
        patches.chdir(ROOT / "docs")
        # IPython puts a module of its own there.
        patches.setitem(sys.modules, "__main__", sys.modules["__main__"])
        # Its history would have a thread, which outlives it.
        config = Config({"HistoryManager": {"enabled": False}})
        shell = InteractiveShell(config=config)
        shell.enable_gui = lambda gui: None  # there is no window
        for name, cell in CELLS.items():
            if cell["cell_type"] == "code":
                with redirect_stdout(StringIO()) as stdout:
                    done = shell.run_cell("".join(cell["source"]))
                done.raise_error()
                data, _ = shell.display_formatter.format(done.result)
                shown[name] = {**data, "stdout": stdout.getvalue()}
    matplotlib.use(backend)
    return shown


def percentages(line):
    return [float(number) for number in re.findall(r"([\d.]+)%", line)]


def test_it_prints_the_posteriors_of_the_run(shown, tiny_results, row):
    stats = read_predictions(tiny_results / RUN)
    settings = tiny_results / RUN / "recognizer/hyperparams.yaml"
    fitted = YAML().load(settings)["temperature"]["transcript"]
    given = stats.posteriors[stats.ids.index(row["id"])]
    expected = (given.log() / fitted).softmax(dim=0)
    _, *lines = shown["classify"]["stdout"].splitlines()
    assert [line.split()[0] for line in lines] == LABELS
    shares = [percentages(line)[0] for line in lines]
    assert shares == pytest.approx((100 * expected).tolist(), abs=0.06)


def test_it_shows_the_attention_of_every_query_to_every_frame(shown, row):
    instants = round(16000 * audio_duration(row["wav"])) // 160 + 1  # 10 ms
    # In tests/tiny.yaml: cross-attention in one of two layers, 3 queries.
    expected = f"layers, heads, queries, frames: 1 2 3 {-(-instants // 4)}\n"
    assert shown["record"]["stdout"] == expected
    assert len(shown["plot"]["image/png"]) > 10_000


def test_its_recipe_finds_the_class_and_the_sound(shown):
    losses = re.findall(r"loss ([\d.]+)", shown["brain"]["stdout"])
    assert float(losses[-1]) < 0.8 * float(losses[0])
    accuracy, attention = shown["tested"]["stdout"].splitlines()
    assert percentages(accuracy)[0] > 2 * percentages(accuracy)[1]
    assert percentages(attention)[0] > 2 * percentages(attention)[1]


def test_it_is_kept_without_outputs():
    for cell in CELLS.values():
        assert not cell.get("outputs") and not cell.get("execution_count")


def test_its_recording_is_one_that_make_demo_leaves():
    cell = "".join(CELLS["parameters"]["source"])
    corpus = plan_corpus(1234, num_speakers=24, num_dialogues=72, num_turns=10)
    (chosen,) = [u for u in corpus.utterances if f"{u.id}.wav" in cell]
    folder = f"demo/corpus/demo-v{VERSION}-seed1234-24x72x10/{chosen.dialogue}"
    assert f"results/{folder}/{chosen.id}.wav" in cell
    assert chosen.text in cell
    assert chosen.split == "test"
    assert (chosen.voice_emotion, chosen.word_emotion) == ("sad", "neutral")
