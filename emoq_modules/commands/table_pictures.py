"""The pictures of a row of a table."""

import re

from emoq_modules.evaluation.document import Picture, Text
from emoq_modules.evaluation.plots import (
    as_png,
    plot_confusion,
    plot_map,
    plot_reliability,
)
from emoq_modules.evaluation.results import CURVES_FILE, read_predictions


def draw_row(row, number):
    """Draws a row: confusion, reliability, map of embeddings, training.

    Arguments
    ---------
    row : Row
        What ``table_results.read_rows`` returned, all of its runs done.
    number : int
        Its place in the table; the files' names begin with it.

    Returns
    -------
    list of Picture or Text
        Text stands where a picture cannot be drawn.
    """
    slug = re.sub(r"\W+", "-", row.name.lower(), flags=re.ASCII).strip("-")

    def picture(kind, png, caption):
        name = f"{number}-{slug}-{kind}.png"
        return Picture(name, png, f"{row.name}: {caption}.")

    confusion = plot_confusion(
        row.stats.labels, row.stats.summarize(), row.name
    )
    page = [
        picture("confusion", as_png(confusion), f"confusion{row.scope}"),
    ]
    if row.calibration is not None:
        found = row.calibration
        figure = plot_reliability(
            {"as given": found.given, f"T = {_span(found)}": found.scaled},
            found.targets,
            row.name,
        )
        caption = f"accuracy over confidence{row.scope}"
        page.append(picture("reliability", as_png(figure), caption))
    first = row.runs[0]
    of_first = f"fold {first.fold}, seed {first.seed}"
    if row.points is not None:
        tested = read_predictions(first.folder)
        figure = plot_map(row.points, tested.targets, tested.labels, row.name)
        # Embeddings of two folds are of two models, and share no map.
        caption = (
            f"embeddings of the test utterances, {of_first}, by t-SNE: only "
            "what is near says something"
        )
        page.append(picture("map", as_png(figure), caption))
    for stage in first.stages:
        curves = stage.folder / CURVES_FILE
        if curves.exists():
            caption = f"training, stage {stage.number}, {of_first}"
            kind = f"training-{stage.number}"
            page.append(picture(kind, curves.read_bytes(), caption))
    if row.points is None:
        page.append(
            Text(f"{row.name}: there are no embeddings of {of_first} to map.")
        )
    return page


def _span(found):
    """The temperature, or from which to which they are."""
    ends = sorted({min(found.temperatures), max(found.temperatures)})
    return " to ".join(f"{value:.2f}" for value in ends)
