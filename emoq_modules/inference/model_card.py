"""The model card of an export: what it is, measured on what, good for what."""

from huggingface_hub import EvalResult, ModelCardData

from emoq_modules.evaluation.document import (
    Code,
    Heading,
    Table,
    Text,
    as_markdown,
)
from emoq_modules.evaluation.metrics import MEASURES

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
    """Writes the ``README.md`` of an export, in Hugging Face's form.

    Arguments
    ---------
    results : dict
        What ``results.json`` of the run holds.
    calibration : emoq_modules.evaluation.run_calibration.Calibration
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
    str

    Example
    -------
    >>> results = {
    ...     **dict(corpus="toy", variant="emoq", fold=1, stage=2, seed=0),
    ...     **dict(labels=["no", "yes"], n=2, WA=50.0, UA=50.0, WF1=33.3),
    ...     "recall": {"no": 100.0, "yes": 0.0},
    ...     "confusion": [[1, 0], [1, 0]],
    ...     "versions": {"torch": "2.11.0"},
    ... }
    >>> from emoq_modules.evaluation.run_calibration import Calibration
    >>> card = model_card(results, Calibration(1.0), {"LLM": "a/b"}, "<AUDIO>")
    >>> card.startswith("---") and "| yes | 1 | 0 | 0.0 |" in card
    True
    """
    corpus, language = _corpus(results["corpus"])
    metadata = ModelCardData(
        language=language,
        license=license,
        library_name="speechbrain",
        pipeline_tag="audio-classification",
        tags=["emoq", "speech-emotion-recognition", "speechbrain", "q-former"],
        base_model=[name for name in parts.values() if is_hub_name(name)]
        or None,
        metrics=list(_METRICS.values()),
        model_name=_title(results),
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
    page = [
        Heading(1, _title(results)),
        Text(
            "Recognizes the emotion of an utterance from its sound and its "
            f"words: one of {', '.join(results['labels'])}. Trained with EmoQ, "
            "a speech-aware Q-Former and a large language model, as a "
            "SpeechBrain model."
        ),
        *_use(results["labels"], is_trusted),
        *_data(results, corpus),
        *_measured(results),
        *_confidence(calibration),
        *_limits(results, license),
        *_made_of(results, parts, prompt, merged),
    ]
    return f"---\n{metadata.to_yaml()}\n---\n\n{as_markdown(page)}"


def _title(results):
    return f"{results['variant']} on {results['corpus']}"


def _corpus(name):
    for prefix, known in _CORPORA.items():
        if name.startswith(prefix):
            return known
    return f"A corpus called {name}", None


def is_hub_name(name):
    """Whether a part is a name on the hub, and no description."""
    return name.count("/") == 1 and " " not in name


def _use(labels, is_trusted):
    trust = "" if is_trusted else ", trust_source=True"
    return [
        Heading(2, "How to use it"),
        Code(
            [
                "from emoq_modules import EmotionRecognizer",
                f'recognizer = EmotionRecognizer.from_hparams("FOLDER"{trust})',
                "posteriors, score, index, label = recognizer.classify_file(",
                '    "hello.wav", text="Oh, hello!"',
                ")",
            ]
        ),
        Text(
            "FOLDER is this folder, or its name on the Hugging Face hub. Audio "
            "may be of any sampling rate. The transcript is optional, "
            "but the system was trained with it where its prompt has one. "
            f"Posteriors are in the order {', '.join(labels)}."
        ),
    ]


def _data(results, corpus):
    trained = results.get("train_utterances")
    return [
        Heading(2, "Data"),
        Text(
            f"{corpus} (preset {results['corpus']}, fold {results['fold']}). "
            + (f"Trained on {trained} utterances; " if trained else "")
            + f"tested on {results['n']} others, which training and the choice "
            "of the epoch did not see."
        ),
    ]


def _measured(results):
    labels = results["labels"]
    rows = [
        [label, *map(str, counts), _percent(results["recall"][label])]
        for label, counts in zip(labels, results["confusion"], strict=True)
    ]
    return [
        Heading(2, "Measured"),
        Text(
            f"In percent, on the {results['n']} test utterances of this one "
            f"run (seed {results['seed']}). WA is the share recognized, UA the "
            "mean of the class recalls, WF1 the F1 score weighted by class "
            "size. The recalls differ: look at the class you need."
        ),
        Table(
            [*MEASURES, "utterances"],
            [
                [
                    *(_percent(results[measure]) for measure in MEASURES),
                    str(results["n"]),
                ]
            ],
        ),
        Text("Confusion; rows are the reference, columns what is recognized:"),
        Table(["", *labels, "recall"], rows),
    ]


def _confidence(calibration):
    page = [Heading(2, "Confidence")]
    if calibration.utterances:
        page.append(
            Text(
                "Logits are divided by the temperature "
                f"{calibration.temperature:.3f} for the score, which was "
                f"fitted on {calibration.utterances} validation utterances. "
                "Posteriors are as trained."
            )
        )
    else:
        page.append(Text(f"Not calibrated: {calibration.note}."))
    if calibration.errors:
        before, after = calibration.errors
        page.append(
            Text(
                "Expected calibration error on the test utterances (0 to 1, "
                f"15 bins): {before:.3f}, and {after:.3f} at this temperature."
            )
        )
    return page


def _limits(results, license):
    return [
        Heading(2, "Intended use and limits"),
        Text(
            "For research on speech emotion recognition, on recordings like "
            "those of the corpus. What it names is how people judged such "
            "utterances, which is not what somebody feels."
        ),
        Text(
            "Other speakers, languages, rooms, microphones and manners of "
            "speaking than the corpus' make it worse by an amount that has not "
            f"been measured. It knows {len(results['labels'])} classes and "
            "gives one of them to whatever it hears, noise and silence too. "
            "Errors differ between groups of speakers, which has not been "
            "measured either."
        ),
        Text(
            "Not for decisions about people: hiring, credit, policing, "
            "medicine, or watching employees, pupils or customers. In the "
            "European Union inferring emotions at work and in education is "
            "prohibited, with few exceptions (Regulation 2024/1689, Art. 5)."
        ),
        Text(
            "The license is "
            + (
                "not settled here: the corpus and the frozen models bring "
                "terms of their own, which bind these weights; EmoQ's code is "
                "under Apache-2.0."
                if license == "other"
                else f"{license}; the corpus and the frozen models bring terms "
                "of their own."
            )
        ),
    ]


def _made_of(results, parts, prompt, merged):
    history = [
        f"{results[key]} {word}"
        for key, word in (("epochs", "epochs"), ("seconds", "s of training"))
        if results.get(key) is not None
    ]
    return [
        Heading(2, "What it is made of"),
        Table(["part", "from"], [[key, name] for key, name in parts.items()]),
        Text(
            "The LoRA adapter is merged into the LLM, in the folder llm."
            if merged
            else "The folder adapter holds the LoRA adapter in peft's format, "
            "where there is one."
        ),
        Text(
            "hyperparams.yaml is what is loaded, and holds labels, prompt and "
            "temperature; labels.txt and prompt.txt say the same for reading, "
            "and nothing reads them."
        ),
        Text("The prompt:"),
        Code(prompt.splitlines()),
        Text(
            f"Stage {results['stage']}, seed {results['seed']}"
            + "".join(f", {part}" for part in history)
            + ". Versions: "
            + ", ".join(
                f"{name} {version}"
                for name, version in results["versions"].items()
            )
            + "."
        ),
    ]


def _percent(value):
    return "–" if value is None else f"{value:.1f}"
