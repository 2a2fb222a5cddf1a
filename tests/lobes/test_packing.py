"""Rows hold every sequence, and none of it sees what is not its own."""

import pytest
import torch

from emoq_modules.lobes.backbones import load_tokenizer
from emoq_modules.lobes.packing import pack
from tests.lobes.test_decoder import (
    DIM,
    LABELS,
    TARGETS,
    TEXTS,
    encode,
    make_decoder,
    template,
)

PAD_ID = 99
SEQUENCES = [[1, 2, 3], [1, 2, 4, 5, 6, 7, 8], [1, 2, 9, 10]]


def columns(packed, index, length, num_shared):
    """The columns of a sequence's tokens, in their order."""
    shift = packed.shifts[index]
    return [
        place if place < num_shared else place + shift
        for place in range(length)
    ]


@pytest.mark.parametrize("num_shared", [0, 1, 2])
@pytest.mark.parametrize("max_tokens", [0, 8, 100])
def test_each_token_sees_what_comes_before_in_its_sequence_alone(
    num_shared, max_tokens
):
    packed = pack(SEQUENCES, num_shared, max_tokens, PAD_ID)
    for index, sequence in enumerate(SEQUENCES):
        row = packed.rows[index]
        own = columns(packed, index, len(sequence), num_shared)
        assert packed.tokens[row, own].tolist() == sequence
        assert packed.positions[row, own].tolist() == [*range(len(sequence))]
        for place, column in enumerate(own):
            seen = packed.attention_mask[row, 0, column].nonzero().flatten()
            assert sorted(own[: place + 1]) == seen.tolist()


def test_what_all_begin_with_is_there_once_a_row():
    packed = pack(SEQUENCES, 2, 100, PAD_ID)
    assert packed.tokens.shape == (1, 2 + 1 + 5 + 2)
    apart = pack(SEQUENCES, 2, 0, PAD_ID)
    assert apart.tokens.shape == (3, 7)
    assert apart.attention_mask.any(dim=-1).all()  # padding sees something


def test_rows_are_about_equally_long():
    packed = pack([[0] * 9, *[[0]] * 9], 0, 9, PAD_ID)
    assert packed.tokens.shape == (2, 9)


def test_prompts_of_a_template_begin_alike_and_go_on(llm):
    tokenizer = load_tokenizer(llm)
    prompt = template().bind(tokenizer, LABELS)
    prefix = prompt.prefix_ids
    told = tokenizer.decode(prefix)
    assert told.startswith("<|im_start|>system\nName the emotion: angry")
    for text, speaker in [("", None), ("", "Ross"), ("Oh no.", None)]:
        before, _ = prompt.encode(text, speaker)
        assert before[: len(prefix)] == prefix
        assert len(before) > len(prefix)
    bare = type(template())("Name the emotion: {labels}.", "<AUDIO>")
    prompt = bare.bind(tokenizer, LABELS)
    assert prompt.prefix_ids == prompt.encode()[0][:-1]


def gradients(decoder, embeddings):
    """The loss, and the gradient of every parameter that trains."""
    decoder.zero_grad()
    loss = decoder.loss(embeddings, encode(decoder), TARGETS)
    loss.backward()
    return loss, {
        name: parameter.grad.clone()
        for name, parameter in decoder.named_parameters()
        if parameter.requires_grad
    }


def test_sharing_rows_changes_neither_loss_nor_gradient(llm):
    decoder = make_decoder(llm)
    torch.manual_seed(1)
    embeddings = torch.randn(len(TEXTS), DIM)
    decoder.row_tokens = 0
    expected_loss, expected = gradients(decoder, embeddings)
    for row_tokens in (60, 1024):
        decoder.row_tokens = row_tokens
        loss, found = gradients(decoder, embeddings)
        torch.testing.assert_close(loss, expected_loss)
        for name, gradient in found.items():
            torch.testing.assert_close(
                gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name
            )


def test_lora_is_in_half_precision_where_autocast_says_so(llm):
    decoder, seen = make_decoder(llm), []
    for name, module in decoder.llm.named_modules():
        if name.endswith("lora_A.default"):
            module.register_forward_pre_hook(
                lambda module, inputs: seen.append(inputs[0].dtype)
            )
    embeddings = torch.randn(len(TEXTS), DIM)
    with torch.autocast("cpu", torch.bfloat16):
        decoder.loss(embeddings, encode(decoder), TARGETS)
    assert torch.bfloat16 in seen
    seen.clear()
    decoder.loss(embeddings, encode(decoder), TARGETS)
    assert set(seen) == {torch.float32}


def test_eager_attention_sees_the_same(llm):
    decoder = make_decoder(llm)
    embeddings = torch.randn(len(TEXTS), DIM)
    expected = decoder.posteriors(embeddings, encode(decoder))
    decoder.llm.set_attn_implementation("eager")
    torch.testing.assert_close(
        decoder.posteriors(embeddings, encode(decoder)), expected
    )


def test_prefix_is_computed_once_where_weights_no_longer_change(llm):
    decoder = make_decoder(llm)
    torch.manual_seed(1)
    batches = [
        (torch.randn(size, DIM), encode(decoder)[:size]) for size in (3, 1, 2)
    ]
    seen = []
    decoder.llm.base_model.layers[0].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].shape[1])
    )
    with torch.no_grad():
        expected = [decoder.posteriors(*batch) for batch in batches]
        whole, seen[:] = list(seen), []
        decoder.cache_prefix = True
        found = [decoder.posteriors(*batch) for batch in batches]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    length = len(decoder.prompt.prefix_ids)
    assert seen == [length, *(size - length for size in whole)]


def test_prefix_is_not_kept_where_there_is_a_gradient(llm):
    decoder = make_decoder(llm)
    decoder.cache_prefix = True
    embeddings = torch.randn(len(TEXTS), DIM)
    _, kept = gradients(decoder, embeddings)
    decoder.cache_prefix = False
    _, expected = gradients(decoder, embeddings)
    for name, gradient in kept.items():
        torch.testing.assert_close(gradient, expected[name])
