"""An LLM with trained weights, on what people said in MELD."""

import csv
from itertools import islice

import torch

from emoq_modules import PromptTemplate, SoftPromptDecoder

LABELS = ["neutral", "angry", "sadness", "joy", "surprise", "disgust", "fear"]
SYSTEM = "From what a speaker says, name the emotion: {labels}."


def test_how_far_a_recording_alone_is_from_the_same_in_a_batch_in_bfloat16(
    shared_data, trained
):
    """The figure of docs/design.md; ``pytest -s`` prints it."""
    with (shared_data / "MELD/dev_sent_emo.csv").open() as file:
        rows = list(islice(csv.DictReader(file), 32))
    decoder = SoftPromptDecoder(
        trained("SmolLM2-135M-Instruct"),
        PromptTemplate(SYSTEM, "Speaker: {speaker}\nTranscript: {text}"),
        LABELS,
        lora=None,
        dtype="bfloat16",
        check=True,
    ).eval()
    decoder.cache_prefix = True
    prompts = decoder.prompt.encode_batch(
        [row["Utterance"] for row in rows], [row["Speaker"] for row in rows]
    )
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        alone = torch.cat(
            [decoder.posteriors(None, [prompt]) for prompt in prompts]
        )
        apart = (decoder.posteriors(None, prompts) - alone).abs().amax(dim=1)
    print(f"{len(rows)} texts: {apart.max():.3f}, median {apart.median():.3f}")
    assert apart.median() < 0.03 and apart.max() < 0.15
