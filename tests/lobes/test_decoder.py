"""The decoder: what it projects equals the full computation."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from emoq_modules import PromptTemplate, SoftPromptDecoder

LABELS = ["angry", "happy", "neutral", "sad"]
TEXTS = ["Leave me alone.", "I can't believe we won the game, at last!", ""]
SPEAKERS = ["Ross", None, "Rachel Green"]
TARGETS = torch.tensor([0, 1, 3])
DIM = 6
TINY = {
    "vocab_size": 2000,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
HEADS = {"num_key_value_heads": 2}


def template(audio="\nVoice: <AUDIO>"):
    user = "Speaker: {speaker}\nTranscript: {text}" + audio
    return PromptTemplate("Name the emotion: {labels}.", user)


def make_decoder(source, labels=LABELS, **options):
    """A decoder whose LoRA is not at its start."""
    torch.manual_seed(0)
    decoder = SoftPromptDecoder(
        source, template(), labels, embedding_dim=DIM, **options
    )
    with torch.no_grad():  # LoRA starts at zero; it should matter here
        for name, parameter in decoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return decoder.eval()


@pytest.fixture(scope="module")
def decoder(llm):
    return make_decoder(Path(llm))


@pytest.fixture(scope="module")
def embeddings():
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(3, DIM, generator=generator)
    return torch.nn.functional.normalize(embeddings, dim=-1)


def encode(decoder):
    return decoder.prompt.encode_batch(TEXTS, SPEAKERS)


def full_logits(decoder, embedding, text, speaker, answer=()):
    """Logits at every position of one unpadded sequence, (S, |V|)."""
    before, after = decoder.prompt.encode(text, speaker)
    embed = decoder.llm.get_input_embeddings()
    inputs = torch.cat(
        [
            embed(torch.tensor(before)),
            decoder.projector(embedding).view(-1, embed.embedding_dim),
            embed(torch.tensor([*after, *answer])),
        ]
    )
    return decoder.llm(inputs_embeds=inputs[None]).logits[0]


def full_log_probabilities(decoder, embedding, text, speaker, answer):
    """Those of an answer's tokens, ``(len(answer),)``."""
    logits = full_logits(decoder, embedding, text, speaker, answer)
    chosen = logits[-len(answer) - 1 : -1].log_softmax(dim=-1)
    return chosen[range(len(answer)), answer]


@pytest.mark.parametrize("factors", [None, torch.tensor([0.5, 2.0, 1.0, 3.0])])
def test_loss_equals_the_full_computation(decoder, embeddings, factors):
    total = weights = 0.0
    for embedding, text, speaker, target in zip(
        embeddings, TEXTS, SPEAKERS, TARGETS.tolist(), strict=True
    ):
        answer = [*decoder.prompt.label_ids[target], decoder.prompt.eos_id]
        log_probabilities = full_log_probabilities(
            decoder, embedding, text, speaker, answer
        )
        weight = 5 if factors is None else 5 * float(factors[target])
        total -= weight * log_probabilities[0] + 1 * log_probabilities[1]
        weights += weight + 1
    loss, _ = decoder(
        embeddings, encode(decoder), TARGETS, class_weights=factors
    )
    torch.testing.assert_close(loss, total / weights, atol=1e-5, rtol=1e-5)
    assert decoder.answer_weight(TARGETS, factors) == weights


@pytest.mark.parametrize(
    ("row_tokens", "counts"),
    [(0, [5, 1, 3]), (1024, [5, 0, 3]), (1024, [0, 0, 0])],
)
def test_each_may_have_any_number_of_soft_prompts(
    llm, embeddings, row_tokens, counts
):
    decoder = make_decoder(llm, row_tokens=row_tokens)
    torch.manual_seed(2)
    several = torch.randn(3, 5, DIM)
    batch = (several, torch.tensor(counts) / 5), encode(decoder)
    rows = [ids[0] for ids in decoder.prompt.label_ids]
    items = list(zip(several, counts, TEXTS, SPEAKERS, strict=True))
    expected = torch.stack(
        [
            full_logits(decoder, own[:count], *words)[-1, rows].softmax(dim=-1)
            for own, count, *words in items
        ]
    )
    loss, posteriors = decoder(*batch, TARGETS)
    torch.testing.assert_close(posteriors, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, decoder.loss(*batch, TARGETS))
    decoder.cache_prefix = True
    with torch.no_grad():
        found = decoder.posteriors(*batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    one = (embeddings[:, None], torch.ones(3)), encode(decoder)
    torch.testing.assert_close(
        decoder.posteriors(*one),
        decoder.posteriors(embeddings, encode(decoder)),
    )


def test_labels_of_several_tokens_score_by_their_mean_log_probability(
    llm, embeddings
):
    labels = ["angry", "passive-aggressive", "sad"]
    decoder = make_decoder(llm, labels)
    assert not decoder.prompt.labels_are_single_tokens
    arguments = (embeddings, encode(decoder))
    expected = torch.stack(
        [
            torch.stack(
                [
                    full_log_probabilities(decoder, *item, ids).mean()
                    for ids in decoder.prompt.label_ids
                ]
            ).softmax(dim=-1)
            for item in zip(embeddings, TEXTS, SPEAKERS, strict=True)
        ]
    )
    torch.testing.assert_close(
        decoder.posteriors(*arguments), expected, atol=1e-5, rtol=1e-5
    )
    targets = torch.tensor([1, 0, 2])
    loss, posteriors = decoder(*arguments, targets)
    torch.testing.assert_close(posteriors, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, decoder.loss(*arguments, targets))


def test_only_labeled_positions_meet_the_vocabulary(decoder, embeddings):
    seen = []
    hook = decoder.llm.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(output.shape[:-1].numel())
    )
    decoder.loss(embeddings, encode(decoder), TARGETS)
    assert seen == [6], "two tokens for each of three answers"
    decoder.posteriors(embeddings, encode(decoder))
    assert seen == [6], "posteriors take rows of the layer, not the layer"
    hook.remove()


def test_projector_and_lora_train_and_the_llm_does_not(decoder, embeddings):
    decoder.zero_grad()
    decoder.loss(embeddings, encode(decoder), TARGETS).backward()
    training = {n for n, p in decoder.named_parameters() if p.requires_grad}
    with_gradient = {
        name
        for name, parameter in decoder.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }
    decoder.zero_grad()
    assert with_gradient == training
    assert all(
        "lora_" in name or name.startswith("projector.") for name in training
    )


def test_lora_is_on_every_attention_and_mlp_projection(decoder):
    layers = {
        name.split(".lora_A")[0].rpartition(".")[2]
        for name, _ in decoder.named_parameters()
        if "lora_A" in name
    }
    assert layers == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    config = decoder.llm.peft_config["default"]
    assert (config.r, config.lora_dropout) == (16, 0.1)


def test_lora_is_what_peft_makes_of_the_llm(decoder, llm, embeddings):
    reference = get_peft_model(
        AutoModelForCausalLM.from_pretrained(llm),
        LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    adapter = {
        name: parameter
        for name, parameter in decoder.llm.named_parameters()
        if "lora_" in name
    }
    reference.get_base_model().load_state_dict(adapter, strict=False)
    # The vocabulary is never resized.
    embed, other = (m.get_input_embeddings() for m in (decoder.llm, reference))
    assert embed.weight.shape == other.weight.shape
    before, after = decoder.prompt.encode(TEXTS[0], SPEAKERS[0])
    tokens = torch.tensor([before + after])
    torch.testing.assert_close(
        decoder.llm(tokens).logits, reference.eval()(tokens).logits
    )


@pytest.mark.parametrize("model_type", ["qwen2", "gemma", "recurrent_gemma"])
def test_soft_prompt_starts_as_long_as_what_the_llm_sees_of_a_word(
    llm, model_type
):
    decoder = make_decoder(
        {**TINY, **HEADS, "model_type": model_type, "num_hidden_layers": 3},
        tokenizer=llm,
    )
    embeddings = torch.nn.functional.normalize(torch.randn(200, DIM), dim=-1)
    seen = []
    hook = decoder.llm.base_model.layers[0].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0][0].norm(dim=1).mean())
    )
    with torch.no_grad():
        decoder.llm(torch.arange(2000)[None])
        decoder.llm(inputs_embeds=decoder.projector(embeddings)[None])
    hook.remove()
    assert 0.9 < seen[1] / seen[0] < 1.1


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_lora_on_what_the_decoder_reads_rows_of_is_refused(llm, lora):
    with pytest.raises(ValueError, match="LoRA is on the LLM's word embeddi"):
        make_decoder(llm, lora=lora)


def test_gradient_checkpointing_changes_nothing(llm, decoder, embeddings):
    other = make_decoder(llm, gradient_checkpointing=True).train()
    for module in other.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    other.load_state_dict(decoder.state_dict())
    losses = []
    for each in (decoder, other):
        each.zero_grad()
        loss = each.loss(embeddings, encode(each), TARGETS)
        loss.backward()
        losses.append((loss.item(), each.projector.linear.weight.grad.norm()))
    decoder.zero_grad()
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-6)
    torch.testing.assert_close(losses[0][1], losses[1][1])


def test_bfloat16_llm_trains_and_predicts(llm, embeddings):
    decoder = make_decoder(llm, dtype="bfloat16").train()
    loss = decoder.loss(embeddings, encode(decoder), TARGETS)
    loss.backward()
    posteriors = decoder.posteriors(embeddings, encode(decoder))
    assert loss.isfinite() and posteriors.dtype == torch.float32
    assert decoder.projector.linear.weight.grad.isfinite().all()


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("labels", [LABELS, ["angry", "passive-aggressive"]])
def test_scores_are_exact_in_half_precision_too(
    llm, embeddings, monkeypatch, labels, autocast
):
    """In bfloat16 logits from 16 on are 0.125 apart, and some would tie."""
    decoder, seen = make_decoder(llm, labels, dtype="bfloat16"), []
    inner = decoder._reader.last_states
    monkeypatch.setattr(
        *(decoder._reader, "last_states"),
        lambda *given: seen.append(inner(*given)) or seen[-1],
    )
    with torch.no_grad(), torch.autocast("cpu", enabled=autocast):
        decoder.llm.get_output_embeddings().weight.mul_(5)
        posteriors = decoder.posteriors(embeddings, encode(decoder))
    weight = decoder.llm.get_output_embeddings().weight.double()
    words = decoder.prompt.label_ids
    if decoder.prompt.labels_are_single_tokens:
        scores = (seen[0].double() @ weight.T)[:, [ids[0] for ids in words]]
    else:
        scores = torch.stack(
            [
                (hidden.double() @ weight.T)
                .log_softmax(dim=1)[range(3 * len(ids)), ids * 3]
                .view(3, -1)
                .mean(dim=1)
                for hidden, ids in zip(seen, words, strict=True)
            ],
            dim=1,
        )
    torch.testing.assert_close(
        posteriors.double().log(), scores.log_softmax(1), atol=1e-4, rtol=1e-4
    )


def test_text_only_prompt_needs_no_embeddings(llm):
    decoder = SoftPromptDecoder(llm, template(audio=""), LABELS).eval()
    posteriors = decoder.posteriors(None, encode(decoder))
    assert posteriors.shape == (3, 4)
    assert decoder.projector is None
    assert decoder.loss(None, encode(decoder), TARGETS).isfinite()


def test_prompt_and_embedding_size_must_fit(llm):
    for audio, dim in ((template(), None), (template(audio=""), DIM)):
        with pytest.raises(ValueError, match="exactly when the prompt holds"):
            SoftPromptDecoder(llm, audio, LABELS, embedding_dim=dim)


def test_tokenizer_with_more_tokens_than_the_llm_is_refused(llm):
    small = {**TINY, "model_type": "llama", "vocab_size": 10}
    with pytest.raises(ValueError, match="do not belong together"):
        make_decoder(small, tokenizer=llm)


def test_a_label_without_a_word_is_named(decoder, embeddings):
    with pytest.raises(ValueError, match="a label 4, but there are 4 emotion"):
        decoder.loss(embeddings, encode(decoder), torch.tensor([0, 4, 1]))
