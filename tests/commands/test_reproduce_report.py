"""The report of a table, held against NumPy, and what it says is missing."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from emoq_modules.commands.reproduce_report import (
    format_rows,
    report_folder,
    write_report,
)
from emoq_modules.commands.reproduce_results import read_rows
from emoq_modules.commands.reproduce_runs import Run
from emoq_modules.errors import ResultsError
from emoq_modules.evaluation.bootstrap import (
    bootstrap_interval,
    paired_bootstrap,
)
from emoq_modules.evaluation.calibration import (
    apply_temperature,
    expected_calibration_error,
    fit_temperature,
)
from emoq_modules.evaluation.metrics import EmotionStats
from emoq_modules.evaluation.results import (
    pool_results,
    read_predictions,
    write_results,
)
from emoq_modules.training.configuration import StageRun

LABELS = ["angry", "happy", "sad"]
TABLE = {
    "table": 9,
    "title": "A made-up table",
    "corpus": "recipes/TOY/toy.yaml",
    "measures": ["WA", "UA"],
    "rows": [
        {"name": "Quoted", "source": "[1]", "WA": 51.0, "UA": None},
        {"name": "Baseline", "source": "paper", "WA": 52.0, "UA": None},
        {"name": "Whole", "source": "paper", "WA": 60.0, "UA": 61.0},
    ],
}
BASELINE, WHOLE = "Baseline", "Whole"
BOTH = {BASELINE: 0.5, WHOLE: 1.5}  # how much the right class stands out


def make_stats(name, seed, fold, sharpness, labels=LABELS, n=40):
    """The same utterances for every system and seed, dialogues of five."""
    targets = np.random.default_rng(fold).integers(len(LABELS), size=n)
    rng = np.random.default_rng([seed, fold, round(10 * sharpness)])
    logits = rng.standard_normal((n, len(labels)))
    logits[np.arange(n), targets] += sharpness
    stats = EmotionStats(labels)
    stats.append(
        [f"{name}{fold}-{i}" for i in range(n)],
        torch.from_numpy(3 * logits).softmax(dim=1),
        torch.from_numpy(targets),
        [f"{name}{fold}-dialogue{i // 5}" for i in range(n)],
    )
    return stats


def make_stage(stage, corpus, variant, folder):
    hparams = {"stage": stage, "corpus": corpus, "variant": variant}
    hparams["output_folder"] = str(folder)
    return StageRun(json.dumps(hparams))


def make_run(results, row, fold, seed, corpus="toy"):
    folder = results / corpus / row.lower() / f"fold{fold}-seed{seed}/stage2"
    command = ("train.py", "experiment.yaml", "--data_folder", "/my data")
    stage = make_stage(2, corpus, row.lower(), folder)
    return Run(row, fold, seed, command, (stage,))


def write_run(run, sharpness, labels=LABELS):
    hparams = run.stages[-1].hparams
    corpus, variant = hparams["corpus"], hparams["variant"]
    run_info = {"corpus": corpus, "variant": variant, "stage": 2}
    run_info |= {"fold": run.fold, "seed": run.seed, "seconds": 1.0}
    stats = make_stats("test", run.seed, run.fold, sharpness, labels)
    write_results(
        run.folder,
        stats,
        run_info,
        [{"epoch": 1, "train_loss": 1.0}],
        1,
        make_stats("valid", run.seed, run.fold + 50, sharpness, labels),
        torch.stack(stats.posteriors),
    )


def list_runs(results, folds=(1, 2, 3), seeds=(7,), corpus="toy"):
    return [
        make_run(results, row, fold, seed, corpus)
        for row in BOTH
        for seed in seeds
        for fold in folds
    ]


def delete(runs, name):
    for run in runs:
        (run.folder / name).unlink()


def report(table, runs, folder):
    """The Markdown, and what is missing."""
    missing = write_report(table, read_rows(table, runs), folder)
    return (folder / "report.md").read_text(encoding="utf-8"), missing


def tables(markdown):
    """The cells of each table, under the heading above it."""
    found, heading = {}, None
    for line in markdown.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| "):
            cells = re.split(r" ?(?<!\\)\| ?", line)[1:-1]
            found.setdefault(heading, []).append(cells)
    return {name: [rows[0], *rows[2:]] for name, rows in found.items()}


def row_of(table, name):
    (row,) = (cells for cells in table if cells[0] == name)
    return dict(zip(table[0], row, strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two systems, three folds, two seeds: the runs, Markdown, its folder."""
    results = tmp_path_factory.mktemp("whole")
    runs = list_runs(results, seeds=(7, 8))
    for run in runs:
        write_run(run, BOTH[run.row])
    folder = report_folder(TABLE, runs)
    assert folder == results / "reports/toy/table9"
    markdown, missing = report(TABLE, runs, folder)
    assert missing == []
    return runs, markdown, folder


@pytest.fixture
def runs(whole, tmp_path):
    """A copy of the runs of the first seed, to be changed."""
    shutil.copytree(whole[2].parents[2] / "toy", tmp_path / "toy")
    return list_runs(tmp_path)


# --- Metrics ------------------------------------------------------------------


def test_metrics_are_numpys(whole):
    runs, markdown, _ = whole
    for name in BOTH:
        found = row_of(tables(markdown)["UA"], name)
        seeds = {}
        for run in (run for run in runs if run.row == name):
            stats = read_predictions(run.folder)
            pair = np.array([stats.targets, stats.predictions])
            seeds.setdefault(run.seed, []).append(pair)
        pooled = [
            100 * balanced_accuracy_score(*np.hstack(folds))
            for folds in seeds.values()
        ]
        by_fold = np.mean(
            [
                [100 * balanced_accuracy_score(*fold) for fold in folds]
                for folds in seeds.values()
            ],
            axis=0,
        )
        assert len(by_fold) == 3
        assert found["runs"] == "6"
        mean, spread = np.mean(by_fold), np.std(by_fold, ddof=1)
        assert found["mean of folds"] == f"{mean:.1f}"
        assert found["s.d. of folds"] == f"{spread:.1f}"
        assert found["pooled"] == f"{np.mean(pooled):.1f}"
        assert found["s.d. of seeds"] == f"{np.std(pooled, ddof=1):.1f}"
        here = row_of(tables(markdown)["The table"], name)
        assert here["UA, mean of folds"] == f"{mean:.1f} ± {spread:.1f}"
        assert here["UA, pooled"] == f"{np.mean(pooled):.1f}"
        (line,) = (
            line
            for line in format_rows(TABLE, read_rows(TABLE, runs)).splitlines()
            if line.startswith(name)
        )
        assert f" {mean:.1f} ± {spread:.1f} " in line
        assert line.endswith(f" {np.mean(pooled):.1f}  6")
    # Of the mean of folds, as the table says.
    difference = mean - TABLE["rows"][-1]["UA"]
    assert found["to the paper"] == f"{difference:+.1f}"
    assert "The paper's is compared with the mean of folds." in markdown
    baseline = row_of(tables(markdown)["UA"], BASELINE)
    assert baseline["to the paper"] == "–"  # the paper has none


def test_intervals_and_comparisons_are_of_all_seeds_and_dialogues(whole):
    runs, markdown, _ = whole
    seeds = {
        name: [
            pool_results(
                [r.folder for r in runs if r.row == name and r.seed == seed]
            )
            for seed in (7, 8)
        ]
        for name in BOTH
    }
    for name, of_seeds in seeds.items():
        _, low, high = bootstrap_interval(of_seeds, "WA")
        found = row_of(tables(markdown)["WA"], name)
        assert found["95 % interval"] == f"{low:.1f} to {high:.1f}"
        _, inner_low, inner_high = bootstrap_interval(of_seeds[0], "WA")
        assert (low, high) != (inner_low, inner_high)
    compared = paired_bootstrap(seeds[WHOLE], seeds[BASELINE], "WA")
    _, found, _ = tables(markdown)[f"{WHOLE} against the others"]
    assert found == [
        BASELINE,
        "WA",
        f"{compared.difference:+.1f}",
        f"{compared.low:+.1f} to {compared.high:+.1f}",
        f"{compared.p_value:.4f}",
    ]
    recalls = tables(markdown)["Recall of each class"]
    recall = seeds[WHOLE][0].summarize("recall")["happy"]
    assert row_of(recalls, "happy")[WHOLE] == f"{recall:.1f}"
    assert markdown.count("all folds together, seed 7 alone") >= 4
    # 40 utterances a fold, in dialogues of five.
    assert "here 24 dialogues, and seeds together with them" in markdown
    assert "With fewer than 30 of them it is too narrow" in markdown


def test_each_fold_has_the_temperature_of_its_own_validation_set(whole):
    runs, markdown, _ = whole
    given, scaled, targets, temperatures = [], [], [], []
    for run in runs:
        if (run.row, run.seed) == (WHOLE, 7):
            test = read_predictions(run.folder)
            valid = read_predictions(run.folder / "valid_predictions.csv")
            posteriors = torch.stack(test.posteriors).numpy()
            temperature = fit_temperature(
                torch.stack(valid.posteriors), valid.targets
            )
            given.append(posteriors)
            scaled.append(apply_temperature(posteriors, temperature))
            targets += test.targets
            temperatures.append(f"{temperature:.2f}")
    found = row_of(tables(markdown)["Confidence"], WHOLE)
    for name, posteriors in (("ECE", given), ("ECE, scaled", scaled)):
        error = expected_calibration_error(np.concatenate(posteriors), targets)
        assert found[name] == f"{error:.3f}"
    assert found["temperature"] == ", ".join(temperatures)
    assert len(set(temperatures)) == 3


def test_rows_are_the_tables_in_its_order_with_the_papers_metrics(whole):
    runs, markdown, _ = whole
    found = tables(markdown)["The table"]
    assert [row[0] for row in found[1:]] == ["Quoted", BASELINE, WHOLE]
    assert [row[1] for row in found[1:]] == ["[1]", "paper", "paper"]
    quoted = row_of(found, "Quoted")
    assert (quoted["WA, paper"], quoted["UA, paper"]) == ("51.0", "–")
    assert (quoted["WA, pooled"], quoted["runs"]) == ("–", "–")
    text = format_rows(TABLE, read_rows(TABLE, runs)).splitlines()
    assert text[2].split() == ["Quoted", "51.0", *"––––––"]
    assert text[4].split()[:3] == [WHOLE, "60.0", "61.0"]


def test_another_corpus_is_not_compared(tmp_path):
    runs = list_runs(tmp_path, folds=(1,), corpus="demo")
    for run in runs:
        write_run(run, BOTH[run.row])
    markdown, missing = report(TABLE, runs, tmp_path / "report")
    assert missing == []
    assert "metrics are of another corpus, toy" in markdown
    found = tables(markdown)
    assert row_of(found["WA"], WHOLE)["to the paper"] == "another corpus"
    assert row_of(found["The table"], WHOLE)["WA, paper, toy"] == "60.0"
    assert "here, demo" in format_rows(TABLE, read_rows(TABLE, runs))


def test_a_note_takes_the_place_of_the_difference(runs, tmp_path):
    note = "It is of seven classes: emoq probe --preset recipes/TOY/toy7.yaml."
    rows = [*TABLE["rows"][:2], {**TABLE["rows"][2], "note": note}]
    table = {**TABLE, "rows": rows}
    markdown, _ = report(table, runs, tmp_path / "report")
    for measure in TABLE["measures"]:
        row = row_of(tables(markdown)[measure], WHOLE)
        assert row["to the paper"] == "another task"
    assert f"\n{WHOLE}: {note}\n" in markdown
    assert format_rows(table, read_rows(table, runs)).endswith(
        f"\n\n{WHOLE}: {note}"
    )


def test_a_probe_of_the_same_encoder_is_a_row(runs, tmp_path):
    def with_encoder(hparams, size):
        encoder = f'"audio_encoder": !new:my.Encoder {{size: {size}}}'
        return f"{json.dumps(hparams)[:-1]}, {encoder}}}"

    def write_probe(size):
        for fold in (1, 2, 3):
            folder = tmp_path / f"toy/probe-Encoder/fold{fold}-seed7/stage1"
            hparams = {"corpus": "toy", "variant": "probe-Encoder", "stage": 1}
            hparams["output_folder"] = str(folder)
            info = hparams | {"fold": fold, "seed": 7, "seconds": 1.0}
            info |= {"layer": 3, "command": ["-m", "emoq_modules", "probe"]}
            write_results(folder, make_stats("test", 7, fold, 1.0), info)
            settings = with_encoder(hparams, size)
            (folder / "hyperparams.yaml").write_text(settings)

    (stage,) = runs[-1].stages
    stage = StageRun(with_encoder(stage.hparams, 1))
    runs[-1] = replace(runs[-1], stages=(stage,))
    write_probe(2)
    assert "linear probe" not in report(TABLE, runs, tmp_path / "report")[0]
    write_probe(1)
    markdown, _ = report(TABLE, runs, tmp_path / "report")
    found = tables(markdown)
    names = [cells[0] for cells in found["The table"][1:]]
    assert names == ["Quoted", BASELINE, "linear probe, layer 3", WHOLE]
    row = row_of(found["The table"], "linear probe, layer 3")
    pooled = pool_results(tmp_path.glob("toy/probe-Encoder/*/stage1"))
    assert row["UA, pooled"] == f"{pooled.summarize('UA'):.1f}"
    assert (row["UA, paper"], row["source"]) == ("–", "emoq probe")
    compared = [cells[0] for cells in found[f"{WHOLE} against the others"]]
    assert "linear probe, layer 3" in compared
    assert "python -m emoq_modules probe" in markdown
    assert "logistic regression on the frames" in markdown


# --- What is missing ----------------------------------------------------------


def test_a_missing_fold_is_named_and_no_mean_is_shown(runs, tmp_path):
    delete([runs[2]], "results.json")
    markdown, missing = report(TABLE, runs, tmp_path / "report")
    said = "incomplete: 2 of 3 folds, missing fold 3 (seed 7)"
    assert missing == [f"{BASELINE}: {said}"]
    row = row_of(tables(markdown)["The table"], BASELINE)
    assert row["runs"] == said
    assert row["WA, pooled"] == row["UA, mean of folds"] == "–"
    for name, cells in tables(markdown).items():
        assert name == "The table" or BASELINE not in [c[0] for c in cells]
    assert f"it takes {WHOLE} and another row" in markdown
    assert said in format_rows(TABLE, read_rows(TABLE, runs))


def test_missing_rows_and_seeds_are_named(runs, tmp_path):
    runs = list_runs(tmp_path, seeds=(7, 8))
    delete([*runs[:7], *runs[9:]], "results.json")
    markdown, missing = report(TABLE, runs, tmp_path / "report")
    assert missing == [
        f"{BASELINE}: not run",
        f"{WHOLE}: incomplete: 2 of 6 runs, missing fold 1 (seed 7); "
        "folds 1, 2, 3 (seed 8)",
    ]
    assert "No row is complete" in markdown


def test_what_is_not_kept_is_neither_calibrated_nor_drawn(runs, tmp_path):
    delete(runs, "valid_predictions.csv")
    delete(runs, "test_embeddings.safetensors")
    markdown, missing = report(TABLE, runs, tmp_path / "report")
    assert len(missing) == 2  # a system without audio has no embeddings
    assert missing[1] == (
        f"{WHOLE}: not calibrated, as there is no valid_predictions.csv of "
        "folds 1, 2, 3 (seed 7)"
    )
    assert row_of(tables(markdown)["Confidence"], WHOLE)["ECE"] == "–"
    assert row_of(tables(markdown)["WA"], WHOLE)["pooled"] != "–"
    assert not list((tmp_path / "report").glob("*map.png"))
    assert f"{WHOLE}: there are no embeddings of fold 1, seed 7" in markdown


def change_places(runs, dialogue, speaker=""):
    """Writes other dialogues and speakers, by a function of the place."""
    for run in runs:
        path = run.folder / "predictions.csv"
        header, *rows = (
            line.split(",") for line in path.read_text().splitlines()
        )
        for place, row in enumerate(rows):
            row[3:5] = dialogue.format(place), speaker.format(place // 6)
        path.write_text("\n".join(map(",".join, [header, *rows])))


def test_speakers_are_resampled_where_there_are_no_dialogues(runs, tmp_path):
    runs = [run for run in runs if run.fold == 1]
    change_places(runs, "d{}", "s{}")
    markdown, _ = report(TABLE, runs, tmp_path / "report")
    assert "else utterances: here 7 speakers; the interval says" in markdown
    assert "With fewer than 30 of them" in markdown
    change_places(runs, "d{}")
    markdown, _ = report(TABLE, runs, tmp_path / "report")
    assert "else utterances: here 40 utterances; the interval" in markdown
    assert "With fewer than" not in markdown
    change_places(runs[:1], "d{}", "s{}")
    markdown, _ = report(TABLE, runs, tmp_path / "report")
    said = f"7 speakers of {BASELINE}, 40 utterances of {WHOLE};"
    assert said in markdown


def test_one_dialogue_gives_no_interval(runs, tmp_path):
    runs = [run for run in runs if run.fold == 1]
    change_places(runs, "d")
    markdown, _ = report(TABLE, runs, tmp_path / "report")
    assert row_of(tables(markdown)["WA"], WHOLE)["95 % interval"] == "–"
    assert "Not compared: there is one dialogue alone." in markdown


def change_labels(runs):
    write_run(runs[-1], 1.0, [*LABELS[:2], "sadness"])
    return rf"{runs[-1].folder} has the classes .*sadness"


def change_reference(runs):
    # Another label than the other system has of the same utterance.
    path = runs[-1].folder / "predictions.csv"
    lines = path.read_text().splitlines()
    cells = lines[1].split(",")
    cells[1] = next(label for label in LABELS if label != cells[1])
    path.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]))
    write_confusion(runs[-1].folder)
    return f"{WHOLE} cannot be compared with {BASELINE}: 'test3-0' is"


def write_confusion(folder):
    """Has the results agree with the predictions again."""
    path = folder / "results.json"
    results = json.loads(path.read_text())
    results |= read_predictions(folder).summarize()
    path.write_text(json.dumps(results))


def exchange_predictions(runs):
    # Of the same fold, and of the other system.
    shutil.copy(runs[2].folder / "predictions.csv", runs[-1].folder)
    return f"{runs[-1].folder}/results.json has another confusion than"


def copy_folder(runs):
    shutil.copytree(runs[-2].folder, runs[-1].folder, dirs_exist_ok=True)
    return f"{runs[-1].folder}/results.json is of fold 2, where 3 belongs"


@pytest.mark.parametrize(
    "spoil",
    [change_labels, change_reference, copy_folder, exchange_predictions],
)
def test_contradictions_are_errors_that_name_the_run(runs, tmp_path, spoil):
    with pytest.raises(ResultsError, match=spoil(runs)):
        report(TABLE, runs, tmp_path / "report")
    assert not (tmp_path / "report").exists()


# --- The page -----------------------------------------------------------------


class Page(HTMLParser):
    """Checks that tags are closed in order; collects text and sources."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.cells, self.texts = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.sources += [v for k, v in attributes if k in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_html_is_whole_and_says_what_the_markdown_says(whole):
    _, markdown, folder = whole
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    cells = [c for rows in tables(markdown).values() for r in rows for c in r]
    assert [cell for cell in page.cells if cell] == cells
    assert len(page.sources) == 8  # four pictures of each of two systems
    assert all(s.startswith("data:image/png;base64,") for s in page.sources)
    assert "http" not in "".join(page.texts)


def test_pictures_stand_beside_the_markdown_and_old_ones_go(runs, tmp_path):
    first, folder = tmp_path / "first", tmp_path / "report"
    first.mkdir()
    (first / "training_curves.png").write_bytes(b"stage 1")
    stage = make_stage(1, "toy", "whole", first)
    runs = [replace(run, stages=(stage, *run.stages)) for run in runs]
    markdown, _ = report(TABLE, runs, folder)
    named = set(re.findall(r"!\[.*\]\((.*)\)", markdown))
    assert named == {path.name for path in folder.glob("*.png")}
    assert {name.split("-", 2)[2] for name in named} == {
        "confusion.png",
        "map.png",
        "reliability.png",
        "training-1.png",
        "training-2.png",
    }
    assert (folder / "3-whole-training-1.png").read_bytes() == b"stage 1"
    training = (folder / "3-whole-training-2.png").read_bytes()
    assert training == (runs[3].folder / "training_curves.png").read_bytes()
    delete(runs[3:], "results.json")
    report(TABLE, runs, folder)
    assert not list(folder.glob("3-whole-*"))


def test_a_report_made_again_is_the_same_to_the_byte(whole, tmp_path):
    runs, _, folder = whole
    report(TABLE, runs, tmp_path)
    first, second = (
        {path.name: path.read_bytes() for path in place.iterdir()}
        for place in (folder, tmp_path)
    )
    assert first == second


def test_special_characters_stay_text(tmp_path):
    name, label = "A|B <b>*x*</b> & `y`", "so|<i>sad</i>_&"
    rows = [*TABLE["rows"][:2], {**TABLE["rows"][2], "name": name}]
    table = {**TABLE, "rows": rows, "title": "[a](http://x)"}
    run = replace(make_run(tmp_path, "whole", 1, 7), row=name)
    write_run(run, 1.0, [*LABELS[:2], label])
    markdown, _ = report(table, [run], tmp_path / "report")
    assert r"A\|B \<b\>\*x\*\</b\> \& \`y\`" in markdown
    assert r"so\|\<i\>sad\</i\>\_\&" in markdown
    assert r"\[a](http://x)" in markdown
    page = Page((tmp_path / "report/report.html").read_text(encoding="utf-8"))
    assert name in page.cells and label in page.cells
