"""The model card of an export: what it is, measured on what, good for what."""

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from markupsafe import Markup

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

    Arguments
    ---------
    results : dict
        What ``results.json`` of the run holds.
    calibration : emoq_modules.evaluation.calibration.Calibration
        How confidence was corrected.
    parts : dict
        By the name of each frozen part what it is: a name on the hub, or any
        other words.
    prompt : str
        The prompt, as a person reads it.
    license : str
        The hub's name of the license of these weights.
    merged : bool
        Whether the LoRA adapter is merged into the LLM.
    is_trusted : bool
        Whether the YAML names nothing but what exports need.

    Returns
    -------
    huggingface_hub.ModelCard

    Example
    -------
    >>> results = {
    ...     **dict(corpus="toy", variant="emoq", fold=1, stage=2, seed=0),
    ...     **dict(labels=["no", "yes"], n=2, WA=50.0, UA=50.0, WF1=33.3),
    ...     "recall": {"no": 100.0, "yes": 0.0},
    ...     "confusion": [[1, 0], [1, 0]],
    ...     "versions": {"torch": "2.11.0"},
    ... }
    >>> from emoq_modules.evaluation.calibration import Calibration
    >>> card = model_card(results, Calibration(1.0), {"LLM": "a/b"}, "<AUDIO>")
    >>> card.data.library_name, "| yes | 1 | 0 | 0.0 |" in card.text
    ('speechbrain', True)
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
    labels, versions = results["labels"], results["versions"].items()
    history = (("epochs", "epochs"), ("seconds", "s of training"))
    text = render(
        "inference/model_card.jinja",
        "markdown",
        metadata=Markup(metadata.to_yaml()),
        title=title,
        corpus=corpus,
        results={"train_utterances": None, **results},
        labels=", ".join(labels),
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
        license=license,
        parts=parts,
        merged=merged,
        prompt=prompt,
        history="".join(
            f", {results[key]} {words}"
            for key, words in history
            if results.get(key) is not None
        ),
        versions=", ".join(f"{name} {version}" for name, version in versions),
    )
    return ModelCard(text)


def is_hub_name(name):
    """Whether a part is a name on the hub, and no description."""
    return name.count("/") == 1 and " " not in name


def _percent(value):
    return "–" if value is None else f"{value:.1f}"
