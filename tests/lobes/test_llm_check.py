"""Any causal LM is one key, or is refused by name before anything trains."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from emoq_modules import PromptTemplate
from emoq_modules.errors import BackboneError
from emoq_modules.lobes import llm, packed_llm
from emoq_modules.lobes.llm import load_llm
from tests.lobes.test_decoder import (
    DIM,
    HEADS,
    LABELS,
    SPEAKERS,
    TEXTS,
    TINY,
    encode,
    full_logits,
    make_decoder,
    template,
)

GROUPED = {**HEADS, "head_dim": 8}
WINDOW = {"sliding_window": 24}  # shorter than any prompt
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1}
MAMBA = {"mamba_n_heads": 4, "mamba_d_ssm": 32, "mamba_d_head": 8}
# Values beside TINY's, by model_type; those that pack share rows.
PACKED = {
    "qwen2": {**HEADS, "use_sliding_window": True, "max_window_layers": 1},
    "llama": HEADS,
    "mistral": {**HEADS, **WINDOW},
    "mixtral": {**HEADS, **WINDOW, "num_local_experts": 2},
    "gemma": GROUPED,
    "gemma2": {**GROUPED, **WINDOW, "final_logit_softcapping": None},
    "gemma3_text": {**GROUPED, **WINDOW, "num_hidden_layers": 7},
    "gpt_oss": {**GROUPED, **WINDOW, "num_local_experts": 2},
    "phi3": {**HEADS, **WINDOW},
    "qwen3": GROUPED,
    "gpt2": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}
PACKED["qwen2"] |= WINDOW
PACKED["gpt_oss"] |= {"num_experts_per_tok": 1}
APART = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "lfm2": {**HEADS, "layer_types": ["conv", "full_attention"]},
    "mamba": {"state_size": 8},
    "falcon_h1": {**GROUPED, **MAMBA, "mamba_chunk_size": 8},
    "recurrent_gemma": {**HEADS, "num_hidden_layers": 3, "lru_width": 32},
    "qwen3_next": {**GROUPED, **LINEAR, **EXPERTS},
    "qwen3_5_text": {**GROUPED, **LINEAR},
}
APART["recurrent_gemma"] |= {"attention_window_size": 8}
# Large enough for what is read to matter.
RANDOM = dict.fromkeys(("initializer_range", "init_std"), 0.4)
REFUSED = {
    "gemma2": ({**GROUPED}, "changes its logits after .*final_logit_softcap"),
    "gemma3": ({}, "is a Gemma3, which has parts for more than te"),
    "gemma4_text": (GROUPED, "gives tokens to every layer"),
    "t5": ({}, "is a T5, which is no causal language model"),
    "bert": ({}, "something else of a prompt in a batch .* left to right"),
    "llama4_text": (GROUPED, "Llama4ForCausalLM cannot be run as the decoder"),
}


@pytest.fixture
def save(tmp_path, llm):
    """Saves an LLM of random weights, with the small tokenizer."""

    def save(model_type, **values):
        torch.manual_seed(0)
        made = load_llm({**TINY, **RANDOM, "model_type": model_type, **values})
        made.save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(llm).save_pretrained(tmp_path)
        return tmp_path

    return save


@pytest.mark.parametrize("model_type", [*PACKED, *APART])
def test_posteriors_equal_the_full_computation(save, model_type):
    values = (PACKED | APART)[model_type]
    source = save(model_type, **values)
    decoder = make_decoder(source, check=True, lora=None)
    torch.manual_seed(1)
    embeddings = torch.nn.functional.normalize(torch.randn(3, DIM), dim=-1)
    rows = [ids[0] for ids in decoder.prompt.label_ids]
    with torch.no_grad():
        expected = torch.stack(
            [
                full_logits(decoder, *item)[-1, rows].softmax(dim=-1)
                for item in zip(embeddings, TEXTS, SPEAKERS, strict=True)
            ]
        )
        for decoder.cache_prefix in (False, True):
            found = decoder.posteriors(embeddings, encode(decoder))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert expected.std(dim=0).max() > 1e-3, "prompts make a difference"
    assert (decoder._reader.windows is not None) == (model_type in PACKED)


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_the_decoder_cannot_follow_is_refused_by_name(save, model_type):
    values, says = REFUSED[model_type]
    with pytest.raises((BackboneError, ValueError), match=says):
        make_decoder(save(model_type, **values), check=True, lora=None)


def test_layers_that_lora_does_not_go_on_are_named(save):
    with pytest.raises(ValueError, match="not go on Mamba.*lora_target_modul"):
        make_decoder(save("mamba", **APART["mamba"]))


def test_windows_that_are_lost_are_found(save, monkeypatch):
    source = save("mistral", **PACKED["mistral"])
    monkeypatch.setattr(packed_llm, "_windows", lambda llm: {"": None})
    make_decoder(source)
    with pytest.raises(ValueError, match="Mistral.* set row_tokens to 0"):
        make_decoder(source, check=True)
    make_decoder(source, check=True, row_tokens=0)


def test_logits_that_are_not_the_output_layers_are_found(save, monkeypatch):
    monkeypatch.setattr(llm, "_CHANGES", {})
    source = save("granite", **HEADS, logits_scaling=8.0)
    with pytest.raises(ValueError, match="Granite.* makes other logits than"):
        make_decoder(source, check=True)


def test_a_tokenizer_of_another_llm_is_found(save):
    source = save("llama", **HEADS, eos_token_id=1000)
    with pytest.raises(ValueError, match="Llama.* token 1000.* do not belong"):
        make_decoder(source, check=True)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model_type": "strange"}, "strange, which transformers 5.* does not"),
        ({"model_type": "strange", "auto_map": {}}, "runs code of its own"),
        ({}, "is no LLM"),
    ],
)
def test_an_llm_that_transformers_does_not_know_is_named(
    tmp_path, llm, values, says
):
    source = shutil.copytree(llm, tmp_path / "llm")
    (source / "config.json").write_text(json.dumps(values))
    for known in (source, values):
        with pytest.raises(BackboneError, match=says) as refusal:
            make_decoder(known, tokenizer=llm)
        assert "\n" not in str(refusal.value)


def test_an_llm_of_which_a_weight_is_missing_is_refused(llm, tmp_path):
    source = shutil.copytree(llm, tmp_path / "llm")
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match="lacks 1 of the weights .*up_proj"):
        make_decoder(source)


QWEN3 = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
)


@pytest.mark.parametrize(
    ("chat_template", "answer", "says"),
    [
        (CHAT + QWEN3, "Emotion:", r"'<think>\\n\\n</think>' before what the"),
        (CHAT + QWEN3, "<think>\n\n</think>\n\nEmotion:", None),
        (CHAT, "Emotion:", "'<|im_start|>assistant.* before what the assis"),
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n"
            "{% endfor %}{% if add_generation_prompt %}assistant: <think>\n"
            "{% endif %}",
            "Emotion:",
            "begins the assistant's turn with '<think>'",
        ),
        ("{{ messages[-1].content }}", "", "leaves 'Name the emotion: angry"),
        (
            "{{ messages[0].content }}{{ messages[1].content[:20] }}",
            "",
            r"leaves 'Transcript: {text}' out of the prompt",
        ),
    ],
)
def test_a_chat_template_keeps_the_prompt_and_begins_the_answer_or_is_refused(
    llm, chat_template, answer, says
):
    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.chat_template = chat_template
    prompt = PromptTemplate("Name the emotion: {labels}.", template().user)
    prompt.answer = answer
    if says is None:
        prompt.bind(tokenizer, LABELS).check()
    else:
        with pytest.raises(ValueError, match=says):
            prompt.bind(tokenizer, LABELS).check()
