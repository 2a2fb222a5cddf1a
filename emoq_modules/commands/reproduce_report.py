"""The report of a table: what its runs measured, beside what the paper prints.

As Markdown, as HTML, and in short for a terminal. The words of the pages are in
``report.jinja``; here are the cells of their tables, and the pictures.
"""

import re
import shlex
from pathlib import Path

import numpy as np

from emoq_modules.commands.reproduce_results import NOTHING, PROBE, counted
from emoq_modules.commands.reproduce_runs import PROJECT
from emoq_modules.dataio.files import write_atomically
from emoq_modules.errors import ResultsError
from emoq_modules.evaluation.bootstrap import (
    bootstrap_interval,
    find_clusters,
    paired_bootstrap,
)
from emoq_modules.evaluation.calibration import expected_calibration_error
from emoq_modules.evaluation.pages import render
from emoq_modules.evaluation.plots import (
    as_png,
    plot_confusion,
    plot_map,
    plot_reliability,
)
from emoq_modules.evaluation.results import CURVES_FILE, read_predictions

_FEW = 30  # clusters, as Cameron, Gelbach and Miller (2008) have it


def write_report(table, rows, folder):
    """Writes the report of a table, and returns what is missing, in lines.

    The folder, made if it is not there, receives ``report.md`` with its
    pictures, and ``report.html``, which holds them; pictures of an earlier
    report go. ResultsError if rows were not measured on the same utterances.
    """
    values = _opening(table, rows)
    whole = [row for row in rows if row.stats is not None]
    if whole:
        values |= _measured(table, rows, whole)
    content = {
        name: png
        for _, pictures in values.get("drawn", ())
        for name, png, _ in pictures
    }
    for file, form in (("report.md", "markdown"), ("report.html", "html")):
        page = render("commands/report.jinja", form, whole=whole, **values)
        content[file] = page.encode()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        write_atomically(folder / name, data)
    for path in folder.glob("*.png"):
        if path.name not in content:
            path.unlink()
    return values["missing"]


def report_folder(table, runs):
    """Where the report of a table belongs, beside the runs' results."""
    results_folder = runs[0].folder.parents[3]
    corpus = runs[0].stages[-1].hparams["corpus"]
    return results_folder / "reports" / corpus / f"table{table['table']}"


def format_rows(table, rows):
    """The paper's metrics and those measured, a line for each row."""
    measures, several = table["measures"], _several_folds(rows)
    width = max(len(row.name) for row in rows)
    blocks = [[f"{x:<{width}}" for x in ("", "", *(row.name for row in rows))]]
    for column, name in enumerate(_columns(table, rows)):
        cells = [measures] + [
            [_figures(row, measure, several)[column] for measure in measures]
            for row in rows
        ]
        wide = max(8, *(2 + len(cell) for line in cells for cell in line))
        texts = ["".join(f"{cell:>{wide}}" for cell in line) for line in cells]
        across = max(len(texts[0]), 2 + len(name))
        blocks.append([f"{text:>{across}}" for text in (name, *texts)])
    blocks.append(["", "  runs", *(f"  {row.state}" for row in rows)])
    lines = "\n".join(map("".join, zip(*blocks, strict=True)))
    return "\n\n".join([lines, *_notes(rows)])


def _opening(table, rows):
    """What the template names, whatever has been run."""
    own, measured = _corpora(table, rows)
    runs = [run for row in rows for run in row.runs]
    folds = list(dict.fromkeys(run.fold for run in runs))
    seeds = list(dict.fromkeys(run.seed for run in runs))
    header, cells = ["system", "source"], []
    for measure in table["measures"]:
        header += [f"{measure}, {name}" for name in _columns(table, rows)]
    for row in rows:
        metrics = [
            cell
            for measure in table["measures"]
            for cell in _figures(row, measure, len(folds) > 1)
        ]
        cells.append([row.name, row.source, *metrics, row.state])
    return {
        "table": table,
        "own": own,
        "measured": measured,
        "folds": counted(folds, "fold"),
        "seeds": counted(seeds, "seed"),
        "probe": any(row.source == PROBE for row in rows),
        "several_folds": len(folds) > 1,
        "several_seeds": len(seeds) > 1,
        "missing": [f"{row.name}: {row.lacks}" for row in rows if row.lacks],
        "overview": ([*header, "runs"], cells),
        "notes": _notes(rows),
    }


def _measured(table, rows, whole):
    """What it names besides, of the rows whose runs are all done."""
    last = rows[-1]
    others = [row for row in whole if row is not last]
    why = None
    if last.stats is None or not others:
        why = f"it takes {last.name} and another row, both complete"
    elif _clusters(last).count < 2:
        why = f"there is one {_clusters(last).unit} alone"
    commands = [
        [word.removeprefix(f"{PROJECT}/") for word in row.runs[0].command]
        for row in rows
        if row.runs
    ]
    return {
        "last": last,
        **_resampled(whole),
        "details": {
            measure: [_detail(table, rows, row, measure) for row in whole]
            for measure in table["measures"]
        },
        "why_not_compared": why,
        "comparisons": [] if why else _comparisons(table, last, others),
        "recalls": _recalls(whole),
        "confidence": [_confidence(row) for row in whole],
        # Numbered as the table's rows are.
        "drawn": [
            (row, _draw(row, number))
            for number, row in enumerate(rows, start=1)
            if row.stats is not None
        ],
        "commands": [shlex.join(["python", *words]) for words in commands],
    }


def _detail(table, rows, row, measure):
    own, measured = _corpora(table, rows)
    found = row.measured(measure)
    interval = difference = NOTHING
    if _clusters(row).count > 1:
        try:
            interval = _range(bootstrap_interval(_seeds(row), measure))
        except ValueError as error:
            raise ResultsError(
                f"The seeds of {row.name} have no mean: {error}"
            ) from error
    if own != measured:
        difference = "another corpus"
    elif row.note:
        difference = "another task"
    elif row.paper[measure] is not None:
        difference = f"{found.fold_mean - row.paper[measure]:+.1f}"
    shown = found.fold_mean, found.fold_deviation
    shown = *shown, found.pooled, found.seed_deviation
    runs = len(row.runs)
    return [row.name, runs, *map(_percent, shown), interval, difference]


def _comparisons(table, last, others):
    cells = []
    for row in others:
        for measure in table["measures"]:
            try:
                found = paired_bootstrap(_seeds(last), _seeds(row), measure)
            except ValueError as error:
                raise ResultsError(
                    f"{last.name} cannot be compared with {row.name}: {error}"
                ) from error
            difference = f"{found.difference:+.1f}"
            interval, p_value = _range(found, "+.1f"), f"{found.p_value:.4f}"
            cells.append([row.name, measure, difference, interval, p_value])
    return cells


def _recalls(rows):
    stats = rows[0].stats
    members = np.bincount(stats.targets, minlength=len(stats.labels))
    recalls = [row.stats.summarize("recall") for row in rows]
    return ["class", "utterances", *(row.name for row in rows)], [
        [label, count, *(_percent(recall[label]) for recall in recalls)]
        for label, count in zip(stats.labels, members, strict=True)
    ]


def _confidence(row):
    if not row.temperatures:
        return [row.name, *[NOTHING] * 3]
    errors = [
        f"{expected_calibration_error(posteriors, row.stats.targets):.3f}"
        for posteriors in (row.stats.posteriors, row.scaled)
    ]
    temperatures = ", ".join(f"{value:.2f}" for value in row.temperatures)
    return [row.name, *errors, temperatures]


def _draw(row, number):
    """Name, PNG and caption: confusion, reliability, embeddings, training."""
    slug = re.sub(r"\W+", "-", row.name.lower(), flags=re.ASCII).strip("-")
    return [
        (f"{number}-{slug}-{kind}.png", png, f"{row.name}: {caption}.")
        for kind, png, caption in _pictures(row)
    ]


def _pictures(row):
    stats, first = row.stats, row.runs[0]
    figure = plot_confusion(stats, row.name)
    yield "confusion", as_png(figure), f"confusion{row.scope}"
    if row.temperatures:
        ends = sorted({min(row.temperatures), max(row.temperatures)})
        span = " to ".join(f"{value:.2f}" for value in ends)
        figure = plot_reliability(
            {"as given": stats.posteriors, f"T = {span}": row.scaled},
            stats.targets,
            row.name,
        )
        caption = f"accuracy over confidence{row.scope}"
        yield "reliability", as_png(figure), caption
    if row.points is not None:
        # Embeddings of two folds are of two models, and share no map.
        tested = read_predictions(first.folder)
        figure = plot_map(row.points, tested.targets, tested.labels, row.name)
        caption = (
            f"embeddings of the test utterances, {row.first_run}, by t-SNE: "
            "only what is near says something"
        )
        yield "map", as_png(figure), caption
    for stage in first.stages:
        curves = stage.folder / CURVES_FILE
        if curves.exists():
            kind = f"training-{stage.hparams['stage']}"
            caption = kind.replace("-", ", stage ") + f", {row.first_run}"
            yield kind, curves.read_bytes(), caption


def _corpora(table, rows):
    """The corpus of the paper's table, and that of the runs."""
    measured = [
        run.stages[-1].hparams["corpus"] for row in rows for run in row.runs
    ]
    return Path(table["corpus"]).stem, measured[0]


def _columns(table, rows):
    """How the paper's metrics and those measured are headed."""
    own, measured = _corpora(table, rows)
    several = _several_folds(rows)
    here = ["mean of folds", "pooled"] if several else ["here"]
    if own == measured:
        return ["paper", *here]
    return [f"paper, {own}", *(f"{name}, {measured}" for name in here)]


def _figures(row, measure, several_folds):
    """A row's cells of a measure, below these headings."""
    found = row.measured(measure)
    here = [NOTHING if found is None else f"{found.pooled:.1f}"]
    if several_folds:
        here = [NOTHING if found is None else found.folds, *here]
    return [_percent(row.paper[measure]), *here]


def _several_folds(rows):
    return len({run.fold for row in rows for run in row.runs}) > 1


def _notes(rows):
    return [f"{row.name}: {row.note}" for row in rows if row.note]


def _percent(value):
    return NOTHING if value is None else f"{value:.1f}"


def _range(found, form=".1f"):
    return f"{found.low:{form}} to {found.high:{form}}"


def _seeds(row):
    return list(row.pooled.values())


def _clusters(row):
    return find_clusters(*_seeds(row))


def _resampled(whole):
    """What intervals resample, and whether that is enough."""
    found = {row.name: _clusters(row) for row in whole}
    told = list(dict.fromkeys(map(str, found.values())))
    if len(told) > 1:
        told = [f"{clusters} of {name}" for name, clusters in found.items()]
    fewest = min(found.values(), key=lambda clusters: clusters.count)
    return {
        "resampled": ", ".join(told),
        "alone": fewest.unit if fewest.count < 2 else None,
        "few": _FEW if fewest.count < _FEW else None,
    }
