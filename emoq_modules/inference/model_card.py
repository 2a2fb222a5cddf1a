"""The model card of an export: what it is, measured on what, good for what."""

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from markupsafe import Markup

from emoq_modules.evaluation.calibration import TOLD, UNTOLD, WINDOW
from emoq_modules.evaluation.metrics import MEASURES
from emoq_modules.evaluation.pages import render

# By how a corpus' name begins: what it is, and the language of its speech.
_CORPORA = {
    "iemocap": (
        "IEMOCAP (Busso et al. 2008): acted and improvised dialogues of ten "
        "American actors",
        "en",
    ),
    "meld": (
        "MELD (Poria et al. 2019): dialogues of the television series Friends",
        "en",
    ),
    "emodb": (
        "EMO-DB (Burkhardt et al. 2005): ten German actors who say the same "
        "ten sentences in different emotions",
        "de",
    ),
    "demo": (
        "The demo corpus of EmoQ: synthesized voices that speak nonsense "
        "syllables, no people",
        None,
    ),
}
_ASKED = {
    TOLD: "with a transcript",
    UNTOLD: "without a transcript",
    WINDOW: "a window of a time line, without a transcript",
}
# The hub's names for WA, UA and WF1.
_METRICS = {"WA": "accuracy", "UA": "recall", "WF1": "f1"}


def model_card(
    results,
    calibration,
    parts,
    prompt,
    license="other",
    merged=False,
    is_trusted=True,
):
    """The ``README.md`` of an export; its words are in ``model_card.jinja``.

    ``results`` is what ``results.json`` of the run holds; ``parts`` says what
    each frozen part is: a name on the hub, or any other words.
    """
    corpus, language = next(
        (
            known
            for prefix, known in _CORPORA.items()
            if results["corpus"].startswith(prefix)
        ),
        (f"A corpus called {results['corpus']}", None),
    )
    title = f"{results['variant']} on {results['corpus']}"
    metadata = ModelCardData(
        language=language,
        license=license,
        library_name="speechbrain",
        pipeline_tag="audio-classification",
        tags=["emoq", "speech-emotion-recognition", "speechbrain", "q-former"],
        base_model=[name for name in parts.values() if is_hub_name(name)]
        or None,
        metrics=list(_METRICS.values()),
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="audio-classification",
                task_name="Speech emotion recognition",
                dataset_type=results["corpus"],
                dataset_name=f"{results['corpus']}, fold {results['fold']}",
                dataset_split="test",
                metric_type=kind,
                metric_name=f"{measure} (%)",
                metric_value=round(results[measure], 2),
            )
            for measure, kind in _METRICS.items()
        ],
    )
    labels = results["labels"]
    text = render(
        "inference/model_card.jinja",
        "markdown",
        metadata=Markup(metadata.to_yaml()),
        title=title,
        corpus=corpus,
        results=results,
        trust=Markup("" if is_trusted else ", trust_source=True"),
        measured=(
            [*MEASURES, "utterances"],
            [[*(_percent(results[name]) for name in MEASURES), results["n"]]],
        ),
        confusion=(
            ["", *labels, "recall"],
            [
                [label, *counts, _percent(results["recall"][label])]
                for label, counts in zip(
                    labels, results["confusion"], strict=True
                )
            ],
        ),
        calibration=calibration,
        temperatures=[
            [told, f"{calibration.temperatures[way]:.3f}"]
            for way, told in _ASKED.items()
            if way in calibration.temperatures
        ],
        license=license,
        parts=parts,
        merged=merged,
        prompt=prompt,
    )
    return ModelCard(text)


def is_hub_name(name):
    """Whether a part is a name on the hub, and no description."""
    return name.count("/") == 1 and " " not in name


def _percent(value):
    return "–" if value is None else f"{value:.1f}"
