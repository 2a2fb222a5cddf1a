"""The report of a table: what its runs measured, beside what the paper prints.

As Markdown, as HTML, and in short for a terminal.
"""

import shlex
from pathlib import Path

import numpy as np

from emoq_modules.commands.reproduce_results import NOTHING, counted
from emoq_modules.commands.reproduce_runs import PROJECT
from emoq_modules.commands.table_pictures import draw_row
from emoq_modules.dataio.files import write_atomically
from emoq_modules.errors import ResultsError
from emoq_modules.evaluation.bootstrap import (
    bootstrap_interval,
    paired_bootstrap,
)
from emoq_modules.evaluation.calibration import expected_calibration_error
from emoq_modules.evaluation.document import (
    Code,
    Heading,
    Picture,
    Table,
    Text,
    as_html,
    as_markdown,
)


def write_report(table, rows, folder):
    """Writes the report of a table.

    Arguments
    ---------
    table : dict
        What ``reproduce.read_table`` returned.
    rows : list of Row
        What ``read_rows`` returned.
    folder : str or Path
        Made if it is not there. Receives ``report.md`` with its pictures, and
        ``report.html``, which holds them; pictures of an earlier report go.

    Returns
    -------
    list of str
        What is missing.

    Raises
    ------
    ResultsError
        If rows were not measured on the same utterances.
    """
    page = _page(table, rows)
    content = {
        part.name: part.png for part in page if isinstance(part, Picture)
    }
    content["report.md"] = as_markdown(page).encode()
    content["report.html"] = as_html(page).encode()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        write_atomically(folder / name, data)
    for path in folder.glob("*.png"):
        if path.name not in content:
            path.unlink()
    return _missing(rows)


def report_folder(table, runs):
    """Where the report of a table belongs, beside the runs' results.

    Arguments
    ---------
    table : dict
        What ``reproduce.read_table`` returned.
    runs : list of Run
        What ``reproduce.plan`` returned.

    Returns
    -------
    Path
    """
    results_folder = runs[0].folder.parents[3]
    corpus = runs[0].stages[-1].key[0]
    return results_folder / "reports" / corpus / f"table{table['table']}"


def format_rows(table, rows):
    """The paper's figures and those measured, for a terminal.

    Arguments
    ---------
    table : dict
        What ``reproduce.read_table`` returned.
    rows : list of Row
        What ``read_rows`` returned.

    Returns
    -------
    str
        A line for each row, without a final newline.
    """
    measures = table["measures"]
    width = max(len(row.name) for row in rows)
    across = 8 * len(measures)
    own, measured = _corpora(table, rows)
    paper, here = _columns(own, measured)
    names = "".join(f"{measure:>8}" for measure in measures)
    lines = [
        f"{'':<{width}}{paper:>{across}}{here:>{across}}",
        f"{'':<{width}}{names}{names}  runs",
    ]
    for row in rows:
        cells = [_percent(row.paper[measure]) for measure in measures]
        cells += _here(row, measures)
        figures = "".join(f"{cell:>8}" for cell in cells)
        lines.append(f"{row.name:<{width}}{figures}  {row.state}")
    return "\n".join(lines)


def _missing(rows):
    return [f"{row.name}: {row.lacks}" for row in rows if row.lacks]


def _corpora(table, rows):
    """The corpus of the paper's table, and that of the runs."""
    measured = [run.stages[-1].key[0] for row in rows for run in row.runs]
    return Path(table["corpus"]).stem, measured[0]


# --- The page -----------------------------------------------------------------


def _page(table, rows):
    page = _opening(table, rows)
    whole = [row for row in rows if row.stats is not None]
    if not whole:
        page.append(
            Text("No row is complete: there is nothing to measure yet.")
        )
        return page
    page += _in_detail(table, whole)
    page += _against_the_last(table, rows, whole)
    page += _recalls(whole)
    page += _confidence(whole)
    page += _pictures(rows)
    return page + _commands(rows)


def _opening(table, rows):
    own, measured = _corpora(table, rows)
    measures = table["measures"]
    names = f"{', '.join(measures[:-1])} and {measures[-1]}"
    runs = [run for row in rows for run in row.runs]
    seeds = list(dict.fromkeys(run.seed for run in runs))
    folds = list(dict.fromkeys(run.fold for run in runs))
    page = [
        Heading(1, f"Table {table['table']}, measured on {measured}"),
        Text(
            f"“{table['title']}”: the paper's figures, and what was measured "
            f"here, {counted(folds, 'fold')}, {counted(seeds, 'seed')}."
        ),
    ]
    if own != measured:
        page.append(
            Text(
                f"The paper's figures are of another corpus, {own}: they are "
                f"not compared with those measured on {measured}."
            )
        )
    if missing := _missing(rows):
        page += [Heading(2, "What is missing"), *map(Text, missing)]
    header = ["system", "source"]
    paper, here = _columns(own, measured)
    for measure in measures:
        header += [f"{measure}, {paper}", f"{measure}, {here}"]
    cells = []
    for row in rows:
        figures = zip(
            (_percent(row.paper[measure]) for measure in measures),
            _here(row, measures),
            strict=True,
        )
        pairs = [cell for pair in figures for cell in pair]
        cells.append([row.name, row.source, *pairs, row.state])
    pooled = "of the test utterances of all folds together"
    return [
        *page,
        Heading(2, "The table"),
        Table([*header, "runs"], cells),
        Text(
            f"In percent. “Here” is {names} "
            + (pooled if len(folds) > 1 else "of the test set")
            + (", and of the seeds the mean." if len(seeds) > 1 else ".")
        ),
    ]


def _in_detail(table, rows):
    own, measured = _corpora(table, rows)
    page = [
        Heading(2, "In detail"),
        Text(
            "Mean and standard deviation (n − 1) are over runs. “Pooled” is "
            "of the utterances of all folds together, and of seeds the mean. "
            "The interval is a percentile bootstrap interval over whole "
            f"dialogues{rows[0].scope}; it says nothing of other seeds. The "
            "difference to the paper is that of “pooled”."
        ),
    ]
    if any(_dialogues(row.stats) < 2 for row in rows):
        page.append(
            Text("There is one dialogue alone, so there are no intervals.")
        )
    header = ["system", "runs", "mean", "s.d.", "pooled", "95 % interval"]
    for measure in table["measures"]:
        cells = []
        for row in rows:
            values = [figures[measure] for figures in row.figures]
            spread = np.std(values, ddof=1) if len(values) > 1 else None
            difference = NOTHING
            if own != measured:
                difference = "another corpus"
            elif row.paper[measure] is not None:
                difference = f"{row.mean(measure) - row.paper[measure]:+.1f}"
            interval = NOTHING
            if _dialogues(row.stats) > 1:
                found = bootstrap_interval(row.stats, measure)
                interval = _range(found)
            cells.append(
                [
                    row.name,
                    str(len(values)),
                    _percent(np.mean(values)),
                    _percent(spread),
                    _percent(row.mean(measure)),
                    interval,
                    difference,
                ]
            )
        page += [
            Heading(3, measure),
            Table([*header, "to the paper"], cells),
        ]
    return page


def _against_the_last(table, rows, whole):
    last, others = rows[-1], [row for row in whole if row is not rows[-1]]
    page = [Heading(2, f"{last.name} against the others")]
    why = None
    if last.stats is None or not others:
        why = f"it takes {last.name} and another row, both complete"
    elif _dialogues(last.stats) < 2:
        why = "there is one dialogue alone"
    if why is not None:
        return [*page, Text(f"Not compared: {why}.")]
    cells = []
    for row in others:
        for measure in table["measures"]:
            try:
                found = paired_bootstrap(last.stats, row.stats, measure)
            except ValueError as error:
                raise ResultsError(
                    f"{last.name} cannot be compared with {row.name}: {error}"
                ) from error
            cells.append(
                [
                    row.name,
                    measure,
                    f"{found.difference:+.1f}",
                    _range(found, "+.1f"),
                    f"{found.p_value:.4f}",
                ]
            )
    return [
        *page,
        Text(
            f"How much better {last.name} is than each, in points, on the "
            f"same utterances{last.scope}: paired bootstrap over whole "
            "dialogues. p is two-sided and not corrected for the number of "
            "comparisons; 0.0002 is the smallest there can be."
        ),
        Table(
            ["against", "measure", "difference", "95 % interval", "p"], cells
        ),
    ]


def _recalls(rows):
    stats = rows[0].stats
    members = np.bincount(stats.targets, minlength=len(stats.labels))
    cells = [
        [label, str(count)]
        + [_percent(row.stats.summarize("recall")[label]) for row in rows]
        for label, count in zip(stats.labels, members, strict=True)
    ]
    return [
        Heading(2, "Recall of each class"),
        Text(f"In percent{rows[0].scope}."),
        Table(["class", "utterances", *(row.name for row in rows)], cells),
    ]


def _confidence(rows):
    cells = []
    for row in rows:
        if row.calibration is None:
            cells.append([row.name, *[NOTHING] * 3])
            continue
        found = row.calibration
        errors = [
            f"{expected_calibration_error(posteriors, found.targets):.3f}"
            for posteriors in (found.given, found.scaled)
        ]
        values = ", ".join(f"{value:.2f}" for value in found.temperatures)
        cells.append([row.name, *errors, values])
    page = [
        Heading(2, "Confidence"),
        Text(
            "Expected calibration error (ECE; 0 to 1, 15 bins) on the test "
            f"utterances{rows[0].scope}, before and after temperature "
            "scaling. The temperature is fitted on validation alone, for each "
            "fold on its own; 0.05 and 20 are the ends of what is searched."
        ),
        Table(["system", "ECE", "ECE, scaled", "temperature"], cells),
    ]
    for row in rows:
        if row.calibration is None:
            page.append(Text(f"{row.name}: {row.lacks}."))
    return page


def _pictures(rows):
    """Of each complete row; numbered as the table's rows are."""
    page = [Heading(2, "Pictures")]
    for number, row in enumerate(rows, start=1):
        if row.stats is not None:
            page += [Heading(3, row.name), *draw_row(row, number)]
    return page


def _commands(rows):
    lines = []
    for row in rows:
        if row.runs:
            words = [
                a.removeprefix(f"{PROJECT}/") for a in row.runs[0].arguments
            ]
            lines.append(shlex.join(["python", "train.py", *words]))
    return [
        Heading(2, "How it was made"),
        Text(
            "The first run of each row; the others have other folds and seeds. "
            "Each keeps its settings in hyperparams.yaml, beside its results."
        ),
        Code(lines),
    ]


def _columns(own, measured):
    """How the paper's figures and those measured are headed."""
    if own == measured:
        return "paper", "here"
    return f"paper, {own}", f"here, {measured}"


def _here(row, measures):
    """The cells of what was measured."""
    if row.stats is None:
        return [NOTHING] * len(measures)
    return [_percent(row.mean(measure)) for measure in measures]


def _percent(value):
    return NOTHING if value is None else f"{value:.1f}"


def _range(found, form=".1f"):
    return f"{found.low:{form}} to {found.high:{form}}"


def _dialogues(stats):
    return len(set(stats.dialogues))
