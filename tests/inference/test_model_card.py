"""The model card says what was measured, and is one for the hub."""

from huggingface_hub import ModelCard

from emoq_modules.evaluation.calibration import Calibration
from emoq_modules.inference.model_card import model_card

RESULTS = {
    "corpus": "emodb4",
    "variant": "emoq",
    "fold": 3,
    "stage": 2,
    "seed": 1234,
    "seconds": 60.0,
    "epochs": 12,
    "train_utterances": 272,
    "labels": ["angry", "happy", "bored"],
    "WA": 60.0,
    "UA": 58.333,
    "WF1": 59.25,
    "recall": {"angry": 75.0, "happy": 41.666, "bored": None},
    "confusion": [[3, 1, 0], [7, 5, 0], [0, 0, 0]],
    "n": 16,
    "versions": {"torch": "2.11.0", "emoq": "0.1.0"},
}
PARTS = {
    "audio encoder": "FbankEncoder, with no download",
    "text encoder": "FacebookAI/roberta-base",
    "LLM": "Qwen/Qwen2.5-0.5B-Instruct",
}
PROMPT = "User:\nTranscript: {text}\nVoice: <AUDIO>"
FITTED = Calibration({"transcript": 1.75, "window": 3.0}, (0.21, 0.08))


def card_of(calibration=FITTED, **changes):
    card = model_card({**RESULTS, **changes}, calibration, PARTS, PROMPT)
    return str(card)


def test_hub_reads_the_metadata():
    data = ModelCard(card_of()).data
    assert data.library_name == "speechbrain"
    assert data.language == "de"
    assert data.license == "other"
    assert "speech-emotion-recognition" in data.tags
    assert data.base_model == [PARTS["text encoder"], PARTS["LLM"]]
    measured = {
        (result.metric_type, result.metric_name): result.metric_value
        for result in data.eval_results
    }
    assert measured == {
        ("accuracy", "WA (%)"): 60.0,
        ("recall", "UA (%)"): 58.33,
        ("f1", "WF1 (%)"): 59.25,
    }


def test_card_tells_what_was_measured_of_what():
    lines = card_of().splitlines()
    for line in (
        "# emoq on emodb4",
        "| 60.0 | 58.3 | 59.2 | 16 |",
        "| happy | 7 | 5 | 0 | 41.7 |",
        "| bored | 0 | 0 | 0 | – |",
        "| LLM | Qwen/Qwen2.5-0.5B-Instruct |",
        "    Voice: <AUDIO>",
        "Stage 2, seed 1234, 12 epochs, 60.0 s of training. Versions: "
        "torch 2.11.0, emoq 0.1.0.",
    ):
        assert line in lines


def test_card_says_how_confidence_was_calibrated():
    text = card_of()
    assert "| with a transcript | 1.750 |" in text
    assert "| a window of a time line, without a transcript | 3.000 |" in text
    assert "| without a transcript |" not in text
    assert "0.210 before, and 0.080 after" in text
    text = card_of(Calibration(note="there is no file"))
    assert "Not calibrated: there is no file." in text
    assert "temperature |" not in text


def test_unknown_corpus_has_no_language_and_its_name_is_no_markup():
    text = card_of(corpus="my`own`*corpus*")
    assert ModelCard(text).data.language is None
    assert r"my\`own\`\*corpus\*" in text


def test_license_that_is_given_is_stated():
    card = model_card(RESULTS, FITTED, PARTS, PROMPT, license="cc-by-nc-4.0")
    assert card.data.license == "cc-by-nc-4.0"
    assert "The license is cc-by-nc-4.0" in card.text
    assert "not settled" in card_of()


def test_card_tells_what_it_is_not_for():
    text = card_of()
    for part in ("Not for decisions about people", "has not been measured"):
        assert part in text
