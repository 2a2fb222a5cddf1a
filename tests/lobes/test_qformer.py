"""The EmoQ-Former: a BERT's weights, fresh ones, masks, gradients."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, BertConfig, ElectraConfig

from emoq_modules import AttentivePooling, EmoQFormer, HuggingFaceEncoder
from emoq_modules.errors import BackboneError, CheckpointError
from emoq_modules.inference.asr import load_transcriber
from emoq_modules.lobes.weights import load_trainable, save_trainable

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


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "vocab_size": 200}


def saved(model_type, folder, **values):
    """The folder of a small text encoder of random weights."""
    config = AutoConfig.for_model(model_type, **SIZES, **values)
    AutoModel.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("bert", {}),
        ("bert", {"hidden_act": "relu"}),
        ("roberta", {}),
        ("xlm-roberta", {"pad_token_id": 3}),
        ("camembert", {"type_vocab_size": 1}),
        ("MiniLM", {}),
    ],
)
def test_without_queries_it_is_the_text_encoder(
    model_type, values, tmp_path, trained
):
    if model_type == "MiniLM":
        source = trained("all-MiniLM-L6-v2")
    else:
        source = saved(model_type, tmp_path, **values)
    ours = EmoQFormer(source, AUDIO_DIM, num_queries=0).eval()
    reference = AutoModel.from_pretrained(source).eval()
    audio, audio_lens, tokens, token_lens = batch()
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    # RoBERTa reads pads by their id
    tokens = tokens.masked_fill(mask == 0, reference.config.pad_token_id)
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


@pytest.mark.parametrize(
    "source",
    [
        {"model_type": "distilbert"},
        {"model_type": "no-such-type"},
        ElectraConfig(),
        BertConfig(position_embedding_type="relative_key"),
    ],
    ids=lambda source: type(source).__name__,
)
def test_what_has_other_layers_than_bert_is_refused(source):
    with pytest.raises(ValueError, match="Give one"):
        EmoQFormer(source, AUDIO_DIM)


def test_wrong_backbone_is_refused(llm):
    with pytest.raises(ValueError, match="of the type 'qwen2'"):
        EmoQFormer(llm, AUDIO_DIM)


def test_a_configuration_object_is_taken_for_what_it_is():
    bert = BertConfig(**SIZES)
    assert EmoQFormer(bert, AUDIO_DIM).text_embeddings.first_position == 0
    assert EmoQFormer(SIZES, AUDIO_DIM).text_embeddings.first_position == 2


def test_weights_of_another_width_are_refused(tmp_path):
    folder = saved("bert", tmp_path)
    BertConfig(**SIZES | {"intermediate_size": 64}).save_pretrained(folder)
    with pytest.raises(BackboneError, match="not those of its config.json"):
        EmoQFormer(folder, AUDIO_DIM)


def test_fresh_weights_tell_recordings_apart_alike_at_every_width():
    torch.manual_seed(0)
    audio = 20 * (torch.randn(2, 30, 512) + torch.randn(2, 1, 512))
    tokens, one = torch.randint(5, 200, (1, 9)).expand(2, -1), torch.ones(2)
    distances = []
    for width in (64, 384, 768):
        sizes = SIZES | {"hidden_size": width, "intermediate_size": 4 * width}
        fusion = EmoQFormer(sizes, 512, num_queries=8).eval()
        with torch.no_grad():
            first, second = fusion(audio, one, tokens, one)
        distances.append((first - second).norm().item())
    assert max(distances) < 1.5 * min(distances)
    assert min(distances) > 0.2


@pytest.mark.parametrize("layers", [1, 3])
def test_frames_are_normalized_and_layers_mixed(text_encoder, layers):
    fusion = EmoQFormer(text_encoder, AUDIO_DIM, audio_layers=layers)
    norm = fusion.frame_norm
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    if layers > 1:
        norm.scores.data = torch.tensor([0.0, 1.0, -1.0])
    frames = 100 * np.random.default_rng(0).normal(size=(7, layers * AUDIO_DIM))
    expected, scores = 0, np.exp([0.0, 1.0, -1.0][:layers])
    for layer, score in zip(
        np.split(frames, layers, axis=1), scores, strict=True
    ):
        deviation = layer.std(axis=1, keepdims=True)
        normal = (layer - layer.mean(axis=1, keepdims=True)) / deviation
        expected = expected + score / scores.sum() * normal
    norm = norm.double()
    expected = expected * norm.weight.detach().numpy()
    expected += norm.bias.detach().numpy()
    found = norm(torch.tensor(frames)).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_several_layers_need_the_norm(text_encoder):
    with pytest.raises(ValueError, match="set frame_norm to True"):
        EmoQFormer(text_encoder, 12, frame_norm=False, audio_layers=2)


def test_weights_that_trained_without_the_norm_compute_what_they_did(
    text_encoder, tmp_path
):
    before = EmoQFormer(text_encoder, AUDIO_DIM, frame_norm=False).eval()
    save_trainable(before, tmp_path / "fusion.safetensors")
    after = EmoQFormer(text_encoder, AUDIO_DIM).eval()
    load_trainable(after, tmp_path / "fusion.safetensors")
    with torch.no_grad():
        assert torch.equal(after(*batch()), before(*batch()))
    several = EmoQFormer(text_encoder, AUDIO_DIM, audio_layers=2)
    with pytest.raises(CheckpointError, match="frame_norm.bias is missing"):
        load_trainable(several, tmp_path / "fusion.safetensors")


def test_all_queries_come_after_what_they_are_pooled_to(fusion):
    fusion.eval()
    with torch.no_grad():
        pooled, (queries, _) = fusion(*batch()), fusion.encode(*batch())
        fusion.all_queries = True
        several, lens = fusion(*batch())
    fusion.all_queries = False
    torch.testing.assert_close(several[:, 0], pooled)
    queries = queries / queries.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(several[:, 1:], queries)
    assert lens.tolist() == [1, 1]


def test_audio_that_is_left_out_is_not_heard(fusion):
    fusion.eval()
    audio, audio_lens, tokens, token_lens = batch()
    lens = audio_lens * torch.tensor([0, 1])
    with torch.no_grad():
        both = fusion(audio, audio_lens, tokens, token_lens)
        one = fusion(audio, lens, tokens, token_lens)
        other = fusion(-audio, lens, tokens, token_lens)
        none = fusion(audio, lens * 0, tokens, token_lens)
    torch.testing.assert_close(one[1], both[1])
    assert torch.equal(one[0], other[0]) and torch.equal(one[0], none[0])
    assert (one[0] - both[0]).abs().max() > 1e-3
    assert none.isfinite().all()


def test_backbone_with_weights_missing_is_refused(text_encoder, tmp_path):
    AutoConfig.from_pretrained(text_encoder).save_pretrained(tmp_path)
    weights = load_file(f"{text_encoder}/model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BackboneError, match="lacks 1 .*layer.1.output"):
        EmoQFormer(str(tmp_path), AUDIO_DIM)


def test_code_that_comes_with_a_backbone_is_not_run(
    text_encoder, tmp_path, monkeypatch
):
    folder = shutil.copytree(text_encoder, tmp_path / "strange")
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = {"model_type": "strange", "auto_map": {"AutoConfig": "code.Any"}}
    (folder / "config.json").write_text(json.dumps(config))
    # transformers would ask the person.
    monkeypatch.setattr("builtins.input", lambda _: "y")
    extra = {EmoQFormer: [AUDIO_DIM], load_transcriber: ["cpu"]}
    for load in (EmoQFormer, HuggingFaceEncoder, load_transcriber):
        with pytest.raises((ValueError, BackboneError)):
            load(str(folder), *extra.get(load, []))
    assert not (tmp_path / "ran").exists()


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
