"""The EmoQ-Former: RoBERTa's weights, masks, gradients."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import RobertaModel

from emoq_modules import AttentivePooling, EmoQFormer

AUDIO_DIM = 12


@pytest.fixture(scope="module")
def fusion(text_encoder):
    """An EmoQ-Former on a small RoBERTa."""
    torch.manual_seed(0)
    source = Path(text_encoder)
    return EmoQFormer(source, AUDIO_DIM, num_queries=5, pooling_heads=4)


def batch(seed=0):
    """Audio of 30 and 17 frames, text of 9 and 4 tokens, with junk after."""
    generator = torch.Generator().manual_seed(seed)
    audio = torch.randn(2, 30, AUDIO_DIM, generator=generator)
    tokens = torch.randint(5, 200, (2, 9), generator=generator)
    return audio, torch.tensor([1, 17 / 30]), tokens, torch.tensor([1, 4 / 9])


def test_without_queries_it_is_roberta(text_encoder):
    ours = EmoQFormer(text_encoder, AUDIO_DIM, num_queries=0).eval()
    reference = RobertaModel.from_pretrained(
        text_encoder, add_pooling_layer=False
    ).eval()
    audio, audio_lens, tokens, token_lens = batch()
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    tokens = tokens.masked_fill(mask == 0, 1)  # RoBERTa reads pads by their id
    with torch.no_grad():
        _, text = ours.encode(audio, audio_lens, tokens, token_lens)
        expected = reference(tokens, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(
        text[mask == 1], expected[mask == 1], atol=1e-5, rtol=1e-5
    )


def test_queries_start_with_the_feed_forward_of_roberta(fusion, text_encoder):
    weights = load_file(f"{text_encoder}/model.safetensors")
    for index, layer in enumerate(fusion.layers):
        expected = weights[f"encoder.layer.{index}.intermediate.dense.weight"]
        assert torch.equal(layer.query_output.intermediate.weight, expected)


def test_embedding_is_the_same_alone_and_padded_and_of_unit_norm(fusion):
    fusion.eval()
    audio, audio_lens, tokens, token_lens = batch()
    one = torch.ones(1)
    with torch.no_grad():
        together = fusion(audio, audio_lens, tokens, token_lens)
        alone = fusion(audio[1:, :17], one, tokens[1:, :4], one)
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(2))


def test_utterance_without_text_is_finite(fusion):
    audio, audio_lens, tokens, _ = batch()
    embeddings = fusion(audio, audio_lens, tokens, torch.tensor([0.0, 1.0]))
    assert embeddings.isfinite().all()


def test_audio_and_text_both_matter(fusion):
    fusion.eval()
    audio, audio_lens, tokens, token_lens = batch()
    with torch.no_grad():
        before = fusion(audio, audio_lens, tokens, token_lens)
        other_audio = fusion(audio.flip(0), audio_lens, tokens, token_lens)
        other_text = fusion(audio, audio_lens, tokens.flip(0), token_lens)
    assert (before - other_audio).abs().max() > 1e-3
    assert (before - other_text).abs().max() > 1e-3


@pytest.mark.parametrize("every", [1, 2, 0])
def test_every_parameter_has_a_gradient(text_encoder, every):
    fusion = EmoQFormer(
        text_encoder, AUDIO_DIM, num_queries=5, cross_attention_every=every
    )
    embeddings = fusion(*batch())
    weights = torch.linspace(-1, 1, embeddings.numel()).view_as(embeddings)
    (embeddings * weights).sum().backward()
    without = [
        name
        for name, parameter in fusion.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert without == []


def test_wrong_backbone_is_refused(llm):
    with pytest.raises(ValueError, match="no RoBERTa"):
        EmoQFormer(llm, AUDIO_DIM)


def test_backbone_with_weights_missing_is_refused(text_encoder, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes(
            open(f"{text_encoder}/{name}", "rb").read()
        )
    weights = load_file(f"{text_encoder}/model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="1 are missing"):
        EmoQFormer(str(tmp_path), AUDIO_DIM)


def test_too_long_a_transcript_is_refused(fusion):
    audio, audio_lens, _, _ = batch()
    tokens = torch.full((2, 300), 7)
    with pytest.raises(ValueError, match="max_text_tokens"):
        fusion(audio, audio_lens, tokens, torch.ones(2))


def test_attentive_pooling_agrees_with_a_loop():
    torch.manual_seed(0)
    pooling = AttentivePooling(dim=6, heads=3).double()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    pooled = pooling(x, torch.tensor([1, 3 / 7]))
    for item, size in enumerate([7, 3]):
        scores = pooling.score(x[item, :size]).detach().numpy()
        for head in range(3):
            weights = [2.718281828459045**s for s in scores[:, head]]
            for column in (2 * head, 2 * head + 1):
                values = x[item, :size, column].tolist()
                expected = sum(
                    w * v for w, v in zip(weights, values, strict=True)
                ) / sum(weights)
                assert abs(pooled[item, column].item() - expected) < 1e-9


def test_pooling_heads_must_divide_the_features():
    with pytest.raises(ValueError, match="do not divide"):
        AttentivePooling(dim=6, heads=4)


def test_relative_length_is_rounded_to_whole_positions():
    # In float32 some k / n * n exceed k: a bare comparison lets k + 1 in.
    pooling = AttentivePooling(dim=2, heads=1)
    for size in range(1, 200):
        x = torch.randn(1, 200, 2)
        lens = torch.tensor([size / 200])
        expected = pooling(x[:, :size], torch.ones(1))
        torch.testing.assert_close(pooling(x, lens), expected)
