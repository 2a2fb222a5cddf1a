"""The project and what it is measured against compute the same."""

import pytest
import speechbrain as sb
import torch
from ruamel.yaml import YAML
from speechbrain.dataio.batch import PaddedBatch

from benchmarks.reference import PlainStage2
from emoq_modules import (
    EmoQFormer,
    HuggingFaceEncoder,
    PromptTemplate,
    SoftPromptDecoder,
)
from emoq_modules.lobes.backbones import load_tokenizer
from emoq_modules.training.stages import Stage2Brain
from tests.benchmarks.test_bench import PRESET
from tests.small_brain import make_brain

LABELS = ["angry", "happy", "neutral", "sad"]
TEXTS = ["Leave me alone.", "I can't believe we won, at last!", "", "Oh no."]
SPEAKERS = ["Ross", None, "Rachel Green", "Ross"]
DIM = 16
TEMPLATE = PromptTemplate(
    "Name the emotion: {labels}.",
    "Speaker: {speaker}\nTranscript: {text}\nVoice: <AUDIO>",
)


def make_decoder(llm, embedding_dim, labels=LABELS):
    decoder = SoftPromptDecoder(llm, TEMPLATE, labels, embedding_dim)
    with torch.no_grad():  # LoRA starts at zero; it should matter here
        for name, parameter in decoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return decoder


@pytest.fixture(scope="module")
def modules(text_encoder, llm):
    torch.manual_seed(0)
    fusion = EmoQFormer(text_encoder, DIM, num_queries=3, pooling_heads=2)
    decoder = make_decoder(llm, fusion.output_dim)
    encoder = HuggingFaceEncoder(YAML().load(PRESET)["audio_source"])
    return {"encoder": encoder, "fusion": fusion, "decoder": decoder}


@pytest.fixture(scope="module")
def brain(modules, tmp_path_factory):
    brain = make_brain(
        tmp_path_factory.mktemp("run"),
        Stage2Brain,
        modules,
    )
    brain.modules.eval()  # without dropout, which draws for each by itself
    return brain


@pytest.fixture(scope="module")
def batch(text_encoder, modules):
    """Recordings and transcripts of different lengths, each class once."""
    generator = torch.Generator().manual_seed(1)
    tokenizer = load_tokenizer(text_encoder)
    return PaddedBatch(
        [
            {
                "id": f"u{index}",
                "audio": torch.randn(4000 + 1500 * index, generator=generator),
                "tokens": torch.tensor(tokenizer(text).input_ids),
                "prompt": modules["decoder"].prompt.encode(text, speaker),
                "dialogue": "d",
                "label": index,
            }
            for index, (text, speaker) in enumerate(
                zip(TEXTS, SPEAKERS, strict=True)
            )
        ]
    )


@pytest.fixture(scope="module")
def reference(modules):
    return PlainStage2(**modules).eval()


def inputs(batch):
    return batch.audio, batch.tokens, batch.prompt


def test_loss_is_the_same(brain, reference, batch):
    loss, _ = brain.compute_forward(batch, sb.Stage.TRAIN)
    expected = reference(*inputs(batch), batch.label)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=0)


def test_posteriors_are_the_same(brain, reference, batch):
    with torch.no_grad():
        _, posteriors = brain.compute_forward(batch, sb.Stage.VALID)
    expected, answers = reference.predict(*inputs(batch))
    torch.testing.assert_close(posteriors, expected, atol=1e-4, rtol=0)
    assert posteriors.std(dim=0).min() > 1e-3  # padding could show
    assert len(answers) == len(batch.prompt)


def test_gradient_of_all_that_trains_is_the_same(brain, reference, batch):
    trained = {
        name: parameter
        for name, parameter in brain.modules.named_parameters()
        if parameter.requires_grad
    }
    for part in ("lora_A", "lora_B", "projector", "fusion"):
        assert any(part in name for name in trained)
    losses = (
        brain.compute_forward(batch, sb.Stage.TRAIN)[0],
        reference(*inputs(batch), batch.label),
    )
    ours, theirs = (
        torch.autograd.grad(loss, list(trained.values())) for loss in losses
    )
    for name, one, other in zip(trained, ours, theirs, strict=True):
        assert one.any(), name
        torch.testing.assert_close(
            one, other, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_frames_may_be_given_in_the_place_of_recordings(
    modules, reference, batch
):
    given = PlainStage2(**{**modules, "encoder": None}).eval()
    frames = modules["encoder"](*batch.audio)
    torch.testing.assert_close(
        given(frames, *inputs(batch)[1:], batch.label),
        reference(*inputs(batch), batch.label),
    )


def test_words_of_several_tokens_are_refused(modules, llm):
    decoder = make_decoder(llm, DIM, labels=["happy", "bewildered"])
    with pytest.raises(ValueError, match="bewildered are not one token each"):
        PlainStage2(None, modules["fusion"], decoder)
