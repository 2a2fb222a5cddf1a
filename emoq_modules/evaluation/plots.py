"""Pictures: confusion, training, reliability, map of embeddings, attention.

Figures are made without ``pyplot``, hence without a display and without state
that a notebook or another library would share.
"""

import io

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from emoq_modules.evaluation.calibration import (
    expected_calibration_error,
    reliability,
)
from emoq_modules.evaluation.metrics import MEASURES

# Okabe and Ito's palette, which color-blind readers can tell apart.
_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"
_PURPLE, _GRAY = "#CC79A7", "#666666"
_COLORS = (
    *(_BLUE, _ORANGE, _GREEN, _PURPLE),
    *("#E69F00", "#56B4E9", "#000000", "#F0E442"),
)
_MARKERS = "o^sDvPX*"
# How far the frames of an encoder may end from the end of the sound.
_WINDOW_S = 0.03


def plot_confusion(stats, title):
    """Draws a confusion matrix, each row in percent of its class."""
    labels, metrics = stats.labels, stats.summarize()
    counts = np.array(metrics["confusion"])
    members = counts.sum(axis=1)
    percent = 100 * counts / np.maximum(members, 1)[:, None]

    side = 2.4 + 0.75 * len(labels)  # inches: a cell holds "100 %"
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    texts = [
        [f"{x:.0f} %\n{n}" if of else "–" for x, n in zip(*cells, strict=True)]
        for *cells, of in zip(percent, counts, members, strict=True)
    ]
    rows = [f"{x}\n({n})" for x, n in zip(labels, members, strict=True)]
    _draw_matrix(axes, percent, texts, rows, labels)
    axes.set_xlabel("recognized")
    axes.set_ylabel("reference (utterances)")
    measures = [f"{x} {metrics[x]:.1f} %" for x in MEASURES]
    axes.set_title(f"{title}\n{'   '.join(measures)}", fontsize=10)
    return figure


def plot_matrix(values, rows, columns, title):
    """Draws a measure in percent, by what is trained (row) and tested."""
    width = 2.4 + 1.1 * len(columns) + 0.07 * max(map(len, rows))
    size = width, 2.0 + 0.6 * len(rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    texts = [[f"{value:.1f}" for value in row] for row in values]
    _draw_matrix(axes, np.array(values), texts, rows, columns)
    axes.set_title(title, fontsize=10)
    return figure


def plot_training_curves(history, best_epoch, title):
    """Draws losses, validation measures and learning rate over epochs.

    ``history`` is that of ``write_results``; a value that an epoch lacks leaves
    a gap. The best epoch is marked, if there is any.
    """
    figure = Figure(figsize=(7, 6.5), layout="constrained")
    loss, measures, rate = figure.subplots(
        3, sharex=True, height_ratios=[3, 3, 1.2]
    )
    epochs = [row["epoch"] for row in history]
    for axes, key, label, color, style in (
        (loss, "train_loss", "training", _BLUE, "o-"),
        (loss, "valid_loss", "validation", _ORANGE, "s--"),
        (measures, "valid_WA", "WA", _BLUE, "o-"),
        (measures, "valid_UA", "UA", _ORANGE, "s--"),
        (measures, "valid_WF1", "WF1", _GREEN, "^:"),
        (rate, "lr", "learning rate", _PURPLE, "o-"),
    ):
        values = [row.get(key, np.nan) for row in history]
        axes.plot(epochs, values, style, color=color, label=label, ms=4)
    loss.set_ylabel("loss")
    measures.set_ylabel("validation (%)")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("epoch")

    for axes in (loss, measures, rate):
        _lay_out(axes)
        if best_epoch is not None:
            label = f"best epoch ({best_epoch})"
            dashed = {"color": _GRAY, "linestyle": (0, (4, 3)), "linewidth": 1}
            axes.axvline(best_epoch, label=label, **dashed)
    for axes in (loss, measures):
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
        axes.legend(fontsize=8, frameon=False, **beside)
    rate.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    rate.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    rate.set_ylim(bottom=0)
    figure.suptitle(title, fontsize=11)
    return figure


def plot_reliability(systems, targets, title):
    """Draws a reliability diagram, say before and after temperature scaling.

    ``systems`` are one or two posteriors of the test set, each ``(N, C)``, by
    name. Below accuracy over confidence, with the expected calibration error
    (ECE) of each, is how the utterances spread over the confidences.
    """
    figure = Figure(figsize=(5.5, 6.5), layout="constrained")
    diagram, spread = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    diagram.plot([0, 1], [0, 1], "--", color=_GRAY, lw=1, label="perfect")
    styles = [(_BLUE, "o-"), (_ORANGE, "s-")][: len(systems)]
    for (name, values), (color, style) in zip(
        systems.items(), styles, strict=True
    ):
        confidence, accuracy, count = reliability(values, targets)
        error = expected_calibration_error(values, targets)
        filled = count > 0  # the line goes on over a bin without utterances
        points = confidence[filled], accuracy[filled]
        label = f"{name}, ECE {error:.3f}"
        diagram.plot(*points, style, color=color, label=label, ms=5)
        share = 100 * count / count.sum()
        edges = np.linspace(0, 1, len(count) + 1)
        spread.stairs(share, edges, color=color, fill=True, alpha=0.2)
        spread.stairs(share, edges, color=color, lw=1.5)
    diagram.set_ylabel("accuracy")
    diagram.set_ylim(-0.02, 1.02)  # a marker at the edge is whole
    diagram.legend(fontsize=9, loc="best", frameon=False)
    spread.set_ylabel("utterances")
    spread.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    spread.set_xlabel("confidence (highest posterior)")
    spread.set_xlim(0, 1.02)
    for axes in (diagram, spread):
        _lay_out(axes)
    diagram.set_title(title, fontsize=11)
    return figure


def plot_map(points, targets, labels, title):
    """Draws where utterances lie in a plane, ``(N, 2)``, colored by emotion.

    A class has a color and a marker of its own; colors repeat after the eighth,
    in another size. Axes have no units.
    """
    points, targets = np.asarray(points), np.asarray(targets)
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    axes = figure.add_subplot()
    size = float(np.clip(4000 / len(points), 6, 36))  # points², crowded or not
    for number, label in enumerate(labels):
        members = targets == number
        again, color = divmod(number, len(_COLORS))
        axes.scatter(
            *points[members].T,
            s=size * (1 + again),
            color=_COLORS[color],
            marker=_MARKERS[color],
            alpha=0.7,
            linewidths=0,
            label=f"{label} ({members.sum()})",
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_color("0.8")
    axes.set_title(title, fontsize=11)
    figure.legend(loc="outside right center", frameon=False, markerscale=1.5)
    return figure


def plot_attention(weights, wav, hop_s, title, sample_rate=16000):
    """Draws when in a recording each query of the EmoQ-Former listens.

    Arguments
    ---------
    weights : array_like
        Those of one recording, ``(N_q, T)``: a layer and a head of what
        :meth:`emoq_modules.EmoQFormer.record_attention` yields, or a mean.
    wav : array_like
        The waveform, ``(samples,)``.
    hop_s : float
        Seconds from one frame to the next: the audio encoder's ``hop_s``.
    title : str
        What is heard.
    sample_rate : int
        The waveform's, in Hz.

    Returns
    -------
    matplotlib.figure.Figure
        The waveform, and below it the weights over the same time, as multiples
        of those that attend to all frames alike.

    Raises
    ------
    ValueError
        If the weights are not those of one recording, or of another length.

    Example
    -------
    >>> weights = np.full((4, 25), 1 / 25)
    >>> wav = np.sin(np.arange(32000) / 20)
    >>> figure = plot_attention(weights, wav, 0.08, "a tone of 2 s")
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['amplitude', 'query', 'attention (1: to all frames alike)']
    """
    weights, wav = np.asarray(weights), np.asarray(wav)
    duration = len(wav) / sample_rate  # s
    if weights.ndim != 2 or abs(weights.shape[1] * hop_s - duration) > (
        hop_s + _WINDOW_S
    ):
        raise ValueError(
            f"Weights {weights.shape} at {hop_s} s a frame are not those of a "
            f"recording of {duration:.2f} s: give (queries, frames), without "
            "padding."
        )
    queries, frames = weights.shape
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=[1, 2.5])
    above.plot(np.arange(len(wav)) / sample_rate, wav, color=_BLUE, lw=0.4)
    above.set_ylabel("amplitude")
    above.set_yticks([])
    above.tick_params(length=0)
    above.spines[:].set_visible(False)
    shades = weights * frames
    mesh = below.pcolormesh(
        np.arange(frames + 1) * hop_s,
        np.arange(queries + 1) + 0.5,  # query 1 is the row around 1
        shades,
        cmap="Blues",
        vmin=0,
        vmax=np.percentile(shades, 99),  # a few peaks would hide the others
    )
    below.invert_yaxis()
    below.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    below.set_ylabel("query")
    below.set_xlabel("time (s)")
    below.set_xlim(0, duration)
    figure.colorbar(
        mesh,
        ax=(above, below),
        extend="max",
        label="attention (1: to all frames alike)",
    )
    above.set_title(title, fontsize=11)
    return figure


def as_png(figure):
    """A figure as the bytes of a PNG file; the same figure, the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _draw_matrix(axes, percent, texts, rows, columns):
    """Cells of a color for their percentage, with a text each."""
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(percent):
        color = "white" if value > 55 else "black"
        look = {"ha": "center", "va": "center", "fontsize": 9, "color": color}
        axes.text(column, row, texts[row][column], **look)
    slanted = max(map(len, columns)) > 9  # wider than a cell
    slant = {"rotation": 35, "ha": "right"} if slanted else {}
    axes.set_xticks(range(len(columns)), columns, **slant)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _lay_out(axes):
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
