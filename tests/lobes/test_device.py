"""Where there is a GPU, all of a step is there."""

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from torch import nn

from emoq_modules import (
    EmoQFormer,
    EmotionRecognizer,
    FbankEncoder,
    FocalLoss,
    HuggingFaceEncoder,
    LayerMeanEncoder,
    MALLoss,
    PromptTemplate,
    SoftPromptDecoder,
    SupConLoss,
)
from emoq_modules.lobes.backbones import load_tokenizer
from emoq_modules.training.stages import Stage1Brain, Stage2Brain
from tests.elsewhere import ELSEWHERE, elsewhere
from tests.small_brain import LABELS, make_brain

DIM = 8
HUBERT = {
    "model_type": "hubert",
    "hidden_size": DIM,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [DIM] * 7,
    "feat_extract_norm": "layer",
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
TEXTS = ["Leave me alone.", "I can't believe we won, at last!", "Oh no."]


@pytest.fixture
def fusion(text_encoder):
    torch.manual_seed(0)
    return EmoQFormer(text_encoder, DIM, num_queries=3, pooling_heads=2)


@pytest.fixture
def batch(text_encoder):
    tokenizer = load_tokenizer(text_encoder)
    return PaddedBatch(
        [
            {
                "id": f"u{label}",
                "audio": torch.randn(5 + label, DIM),
                "tokens": torch.tensor(tokenizer(text).input_ids),
                "dialogue": "d",
                "label": label,
            }
            for label, text in enumerate(TEXTS)
        ]
    )


def check_steps(brain, batch, monkeypatch):
    with elsewhere(monkeypatch):
        brain.device = ELSEWHERE
        brain.modules.to(ELSEWHERE)
        brain.on_stage_start(sb.Stage.TRAIN)
        outputs = brain.compute_forward(batch, sb.Stage.TRAIN)
        loss = brain.compute_objectives(outputs, batch, sb.Stage.TRAIN)
        loss.backward()
        brain.modules.eval()
        brain.on_stage_start(sb.Stage.TEST)
        with torch.no_grad():
            outputs = brain.compute_forward(batch, sb.Stage.TEST)
            brain.compute_objectives(outputs, batch, sb.Stage.TEST)
    assert loss.device == ELSEWHERE
    assert brain.stats.ids == ["u0", "u1", "u2"]
    for name, parameter in brain.modules.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.device == ELSEWHERE, name


def test_steps_of_stage_1_are_where_the_model_is(
    fusion, batch, tmp_path, monkeypatch
):
    head = nn.Linear(fusion.output_dim, len(LABELS))
    mal = MALLoss(SupConLoss(), FocalLoss(class_weights=[1.0, 0.5, 0.2]))
    brain = make_brain(
        tmp_path, Stage1Brain, {"fusion": fusion, "head": head}, mal=mal
    )
    check_steps(brain, batch, monkeypatch)


def test_steps_of_stage_2_are_where_the_model_is(
    fusion, batch, llm, tmp_path, monkeypatch
):
    decoder = SoftPromptDecoder(
        llm,
        PromptTemplate("Name the emotion: {labels}.", "{text}\n<AUDIO>"),
        LABELS,
        fusion.output_dim,
    )
    brain = make_brain(
        tmp_path, Stage2Brain, {"fusion": fusion, "decoder": decoder}
    )
    batch.prompt = decoder.prompt.encode_batch(TEXTS)
    check_steps(brain, batch, monkeypatch)


@pytest.mark.parametrize(
    "encoder",
    [FbankEncoder(), HuggingFaceEncoder(HUBERT), LayerMeanEncoder(HUBERT)],
    ids=lambda encoder: type(encoder).__name__,
)
def test_frames_are_computed_where_the_encoder_is(encoder, monkeypatch):
    wavs, lens = torch.randn(2, 4000), torch.tensor([0.5, 1.0])
    expected, _ = encoder(wavs, lens)
    with elsewhere(monkeypatch):
        encoder.to(ELSEWHERE)
        frames, counts = encoder(wavs.to(ELSEWHERE), lens.to(ELSEWHERE))
        assert frames.device == counts.device == ELSEWHERE
        torch.testing.assert_close(frames.cpu(), expected)


def test_a_tensor_left_behind_is_found(monkeypatch):
    with elsewhere(monkeypatch):
        there = torch.ones(2).to(ELSEWHERE)
        assert (there + torch.ones(2, device=ELSEWHERE)).tolist() == [2, 2]
        with pytest.raises(RuntimeError, match="add meets a tensor on the CPU"):
            there + torch.ones(2)


def test_recordings_are_recognized_where_the_model_is(
    recognizer_folder, monkeypatch
):
    recognizer = EmotionRecognizer.from_hparams(recognizer_folder)
    batch = torch.randn(2, 8000), torch.tensor([1.0, 0.5]), ["Oh no.", ""]
    expected = recognizer.classify_batch(*batch)
    with elsewhere(monkeypatch):
        recognizer.device = ELSEWHERE
        recognizer.mods.to(ELSEWHERE)
        posteriors, score, _, label = recognizer.classify_batch(*batch)
        torch.testing.assert_close(posteriors.cpu(), expected[0])
        torch.testing.assert_close(score.cpu(), expected[1])
    assert label == expected[3]
