"""The picture of a recording's emotions over time, for the page."""

from itertools import cycle, pairwise

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from emoq_modules.dataio.audio import SAMPLE_RATE

# Okabe and Ito's palette, which color-blind readers can tell apart, by how an
# emotion's name begins: anger or angry, happy or happiness.
_EXPECTED = {
    "ang": "#D55E00",
    "hap": "#E69F00",
    "joy": "#E69F00",
    "neu": "#009E73",
    "sad": "#0072B2",
    "fea": "#CC79A7",
    "sur": "#56B4E9",
    "dis": "#F0E442",
}
_COLUMNS = 1500  # of the drawn waveform: more than the figure has pixels
_INK, _FAINT = "#374151", "#9ca3af"


def label_colors(labels):
    """A color for each emotion, the same on the page and in the picture.

    Arguments
    ---------
    labels : list of str
        The emotion words. One that is not expected gets a color that no
        other has, as long as there are any.

    Returns
    -------
    dict

    Example
    -------
    >>> label_colors(["anger", "bored", "sad"])
    {'anger': '#D55E00', 'bored': '#E69F00', 'sad': '#0072B2'}
    """
    expected = [_EXPECTED.get(label[:3].lower()) for label in labels]
    palette = list(dict.fromkeys(_EXPECTED.values()))
    free = cycle([c for c in palette if c not in expected] or palette)
    return {
        label: color or next(free)
        for label, color in zip(labels, expected, strict=True)
    }


def plot_timeline(samples, windows, labels):
    """Draws a waveform and, below it, the posteriors of its windows.

    Arguments
    ---------
    samples : array_like
        The recording at 16 kHz, ``(T,)``.
    windows : list of Recognition
        Its time line: each window counts for the time that is nearer to its
        middle than to that of any other.
    labels : list of str
        The emotion words, in the order of the classes.

    Returns
    -------
    matplotlib.figure.Figure
        The waveform is in the color of the emotion recognized at that time,
        and gray where there is none, since the model abstained.

    Example
    -------
    >>> from emoq_modules.inference.batching import Recognition
    >>> windows = [
    ...     Recognition("x.wav", 0, 2, "", {"no": 0.1, "yes": 0.9}, "yes"),
    ...     Recognition("x.wav", 1, 3, abstained=True),
    ... ]
    >>> figure = plot_timeline(np.zeros(48000), windows, ["no", "yes"])
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['yes', '–']
    """
    samples = np.asarray(samples, dtype=float)
    duration = len(samples) / SAMPLE_RATE
    colors = label_colors(labels)
    edges = _edges(windows, duration)

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    figure.suptitle(
        "Over time, by the voice without the transcript",
        x=0.01,
        ha="left",
        fontsize=10,
        color=_INK,
    )
    wave, shares = figure.subplots(2, sharex=True, height_ratios=[1.2, 1])
    _draw_waveform(wave, samples, windows, edges, colors)
    for start, end, label in _runs(windows, edges):
        wave.text(
            (start + end) / 2,
            1.04,
            label or "–",
            transform=wave.get_xaxis_transform(),
            ha="center",
            fontsize=10,
            weight="bold",
            color=colors.get(label, _FAINT),
        )
    bottom = np.zeros(len(windows))
    for label in labels:
        # A window without sound has no posteriors.
        top = bottom + [window.posteriors.get(label, 0) for window in windows]
        shares.stairs(
            top,
            edges,
            baseline=bottom,
            fill=True,
            color=colors[label],
            label=label,
        )
        bottom = top
    shares.set_ylim(0, 1)
    shares.set_yticks([0, 0.5, 1])
    shares.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    shares.set_ylabel("posteriors", color=_INK)
    shares.set_xlabel("time (s)", color=_INK)
    shares.set_xlim(0, duration)
    shares.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    for axes in (wave, shares):
        axes.spines[:].set_visible(False)
        axes.tick_params(color=_FAINT, labelcolor=_INK)
    return figure


def _draw_waveform(axes, samples, windows, edges, colors):
    step = max(1, len(samples) // _COLUMNS)
    columns = samples[: len(samples) // step * step].reshape(-1, step)
    times = np.arange(len(columns)) * step / SAMPLE_RATE
    low, high = columns.min(axis=1), columns.max(axis=1)
    for start, end, label in _runs(windows, edges):
        here = (times >= start) & (times <= end)
        axes.fill_between(
            times[here],
            low[here],
            high[here],
            color=colors.get(label, _FAINT),
            linewidth=0.6,
        )
    loudest = max(np.abs(samples).max(), 1e-3)
    axes.set_ylim(-1.05 * loudest, 1.05 * loudest)
    axes.set_yticks([])
    axes.tick_params(bottom=False)


def _edges(windows, duration):
    """Where each window's time begins and ends, in seconds."""
    middles = [(window.start + window.end) / 2 for window in windows]
    between = [(a + b) / 2 for a, b in pairwise(middles)]
    return [0, *between, duration]


def _runs(windows, edges):
    """Start, end and label of windows in a row that have the same label."""
    runs = []
    for window, (start, end) in zip(windows, pairwise(edges), strict=True):
        if runs and runs[-1][2] == window.label:
            runs[-1] = (runs[-1][0], end, window.label)
        else:
            runs.append((start, end, window.label))
    return runs
