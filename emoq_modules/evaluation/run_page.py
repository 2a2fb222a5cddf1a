"""A run's page: figures, pictures, and its most certain mistakes to listen to.

One HTML file that holds all it shows, to be opened offline.
"""

import base64
import io
from pathlib import Path

import numpy as np
import soundfile
import torch

from emoq_modules.dataio.files import write_atomically
from emoq_modules.evaluation.metrics import MEASURES
from emoq_modules.evaluation.pages import render
from emoq_modules.evaluation.results import read_results

PAGE_FILE = "index.html"
_MISTAKES = 10
_SAMPLE_RATE = 16000


def write_page(folder, title, stats, pictures, listen, others=(), notes=()):
    """Writes the page of a test set's ``EmotionStats`` into a folder.

    ``pictures`` are caption and PNG. ``listen`` gives of an utterance's id its
    samples at 16 kHz, ``(T,)`` or None, and its words or prompt. ``others`` are
    name and ``results.json`` of what to compare with, such as a probe of the
    same frames; ``notes`` what must be known of the figures.
    """
    summary = stats.summarize()
    rows = [["this run", *_figures(summary)]]
    rows += [
        [f"this run, {corpus} alone", *_figures(part.summarize())]
        for corpus, part in stats.by_corpus().items()
    ]
    rows += [[name, *_figures(results)] for name, results in others]
    page = render(
        "evaluation/run_page.jinja",
        "html",
        title=title,
        measured=(["", *MEASURES, "utterances"], rows),
        pictures=pictures,
        mistakes=list(_mistakes(stats, listen)),
        wrong=sum(map(int.__ne__, stats.predictions, stats.targets)),
        notes=notes,
    )
    write_atomically(Path(folder) / PAGE_FILE, page.encode())


def find_probes(corpus_folder, fold, seed):
    """Name and results of the linear probes of a corpus' fold, for ``others``.

    They are where ``emoq probe`` leaves them; their encoders name them.
    """
    pattern = f"probe-*/fold{fold}-seed{seed}/stage1/results.json"
    found = []
    for path in sorted(Path(corpus_folder).glob(pattern)):
        results = read_results(path.parent)
        encoder = path.parents[2].name.removeprefix("probe-")
        name = f"linear probe of {encoder}, layer {results['layer']}"
        found.append((name, results))
    return found


def _figures(results):
    return [*(f"{results[name]:.1f}" for name in MEASURES), results["n"]]


def _mistakes(stats, listen):
    """The mistakes with the highest posteriors, the highest first."""
    posteriors = torch.stack(stats.posteriors).numpy()
    confidence = posteriors.max(axis=1)
    wrong = np.flatnonzero(
        np.array(stats.predictions) != np.array(stats.targets)
    )
    order = wrong[np.argsort(-confidence[wrong], kind="stable")]
    for number in order[:_MISTAKES].tolist():
        samples, words = listen(stats.ids[number])
        yield {
            "id": stats.ids[number],
            "reference": stats.labels[stats.targets[number]],
            "recognized": stats.labels[stats.predictions[number]],
            "confidence": f"{confidence[number]:.2f}",
            "sound": "" if samples is None else _as_flac(samples),
            "words": words,
        }


def _as_flac(samples):
    """Samples as FLAC, in Base64."""
    file = io.BytesIO()
    soundfile.write(file, samples.numpy(), _SAMPLE_RATE, format="FLAC")
    return base64.b64encode(file.getvalue()).decode()
