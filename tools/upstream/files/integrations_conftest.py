"""Small models that the tests of EmoQ's modules share."""

import pytest

TRANSCRIPTS = [
    "Oh no, what have you done to my car?",
    "I can't believe we won the game!",
    "The meeting is on Tuesday.",
    "Leave me alone.",
]
LABELS = ["angry", "happy", "neutral", "sad"]


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory):
    """The folder of a small RoBERTa."""
    # Here, as other integrations' tests read this file too.
    from emoq_modules.offline import build_text_encoder

    return build_text_encoder(tmp_path_factory.mktemp("roberta"), TRANSCRIPTS)


@pytest.fixture(scope="session")
def llm(tmp_path_factory):
    """The folder of a small Qwen2."""
    from emoq_modules.offline import build_llm

    return build_llm(tmp_path_factory.mktemp("qwen2"), TRANSCRIPTS, LABELS)
