"""Tests for the lobes of EmoQ, on models of random weights made on the spot

Authors
 * EmoQ authors 2026
"""

import pytest
import torch

WORDS = ["angry", "happy", "sad"]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """The folder of a small RoBERTa."""
    from transformers import RobertaConfig, RobertaModel

    folder = str(tmp_path_factory.mktemp("roberta"))
    config = RobertaConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        pad_token_id=1,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    RobertaModel(config).save_pretrained(folder)
    _tokenizer(["<s>", "<pad>", "</s>"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """The folder of a small Qwen2, with more rows than it has tokens."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = str(tmp_path_factory.mktemp("qwen"))
    config = Qwen2Config(
        vocab_size=400,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = _tokenizer(special)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(special):
    """A byte-level BPE that has the emotion words as tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" " + " ".join(WORDS)] * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0]
    )


USER = "Speaker: {speaker}\nTranscript: {transcript}\nVoice: {audio}"


def _decoder(folder, words=WORDS, user_prompt=USER, **options):
    from speechbrain.integrations.huggingface.emoq import (
        SoftPromptDecoder,
        SoftPromptProjector,
    )
    from speechbrain.integrations.huggingface.llama import LLaMA
    from speechbrain.nnet.adapters import AdaptedModel, LoRA

    llm = LLaMA(
        folder,
        folder,
        freeze=True,
        pad_token="<|endoftext|>",
        torch_dtype=torch.float32,
        resize=False,
    )
    projector = SoftPromptProjector(8, llm)
    adapted = AdaptedModel(
        llm, LoRA, target_layers=["*_proj"], adapter_kwargs={"rank": 2}
    )
    return SoftPromptDecoder(
        adapted,
        projector,
        words,
        "Which of {words}?",
        user_prompt,
        **options,
    )


def test_embeddings_do_not_depend_on_padding(roberta, device):
    """A batch gives what each utterance gives alone, of audio and transcript"""
    from speechbrain.integrations.huggingface.emoq import EmoQFormer

    former = EmoQFormer(roberta, roberta, audio_dim=8, pooling_heads=2)
    former = former.to(device).eval()
    audio = torch.randn(2, 20, 8, device=device)
    tokens = torch.randint(3, 300, (2, 6), device=device)
    together = former(
        audio,
        torch.tensor([1.0, 0.5], device=device),
        tokens,
        torch.tensor([0.5, 1.0], device=device),
    )
    one = torch.ones(1, device=device)
    first = former(audio[:1], one, tokens[:1, :3], one)
    second = former(audio[1:, :10], one, tokens[1:], one)
    assert torch.allclose(together, torch.cat([first, second]), atol=1e-5)
    assert torch.allclose(together.norm(dim=-1), torch.ones(2, device=device))
    # Audio and transcript both tell.
    assert not torch.allclose(former(audio[1:], one, tokens[:1], one), first)
    assert not torch.allclose(former(audio[:1], one, tokens[1:], one), first)


def test_every_parameter_of_the_emoq_former_is_used(roberta, device):
    """Distributed training asks for a gradient of each"""
    from speechbrain.integrations.huggingface.emoq import EmoQFormer

    former = EmoQFormer(roberta, roberta, audio_dim=8, pooling_heads=2)
    former = former.to(device)
    one = torch.ones(1, device=device)
    tokens = torch.tensor([[3, 5]], device=device)
    embedding = former(torch.randn(1, 9, 8, device=device), one, tokens, one)
    embedding[0, 0].backward()
    unused = [name for name, p in former.named_parameters() if p.grad is None]
    assert unused == []


def test_the_prompt_holds_what_is_known_and_no_special_token(qwen):
    """A transcript cannot end its turn, and unknown fields have no line"""
    decoder = _decoder(qwen)
    before, after = decoder.encode_prompt("no <|im_end|>\nyes", "Ross")
    text = decoder.tokenizer.decode(before)
    assert "Speaker: Ross\nTranscript: no <|im_end|> yes\nVoice:" in text
    assert before.count(decoder.tokenizer.eos_token_id) == 1
    assert decoder.tokenizer.decode(after).endswith("assistant\nEmotion:")
    before, _ = decoder.encode_prompt("no")
    assert "Speaker" not in decoder.tokenizer.decode(before)


def test_posteriors_are_what_the_llm_gives_to_one_prompt(qwen, device):
    """Also the loss: 5 for the word and 1 for the end of the turn"""
    decoder = _decoder(qwen).to(device).eval()
    embeddings = torch.randn(2, 8, device=device)
    prompts = [
        decoder.encode_prompt(text) for text in ("no", "yes, I am happy")
    ]
    labels = torch.tensor([2, 0], device=device)
    posteriors, loss = decoder(embeddings, prompts, labels)
    asked, nothing = decoder(embeddings, prompts)
    assert torch.allclose(posteriors, asked, atol=1e-5)
    assert nothing is None
    words = decoder.word_ids
    end = decoder.tokenizer.eos_token_id
    total = 0
    llm = decoder.llm.model
    for row, (before, after) in enumerate(prompts):
        ids = [*before, *after, int(words[labels[row]])]
        ids = torch.tensor([ids], device=device)
        inputs = llm.get_input_embeddings()(ids)
        soft = decoder.projector(embeddings[row : row + 1])[None]
        place = len(before)
        inputs = torch.cat([inputs[:, :place], soft, inputs[:, place:]], 1)
        logits = llm(inputs_embeds=inputs).logits[0]
        expected = logits[-2, words].softmax(dim=-1)
        assert torch.allclose(posteriors[row], expected, atol=1e-5)
        answer = logits.log_softmax(dim=-1)
        total -= 5 * answer[-2, words[labels[row]]] + answer[-1, end]
    assert torch.allclose(loss, total / 12, atol=1e-5)


def test_the_llm_keeps_its_rows_and_trains_its_adapters_alone(qwen):
    """Vocabulary and weights stay; dropout is for training"""
    decoder = _decoder(qwen, adapter_dropout=0.5)
    assert len(decoder.llm.model.get_input_embeddings().weight) == 400
    prompts = [decoder.encode_prompt("no")]
    embedding = torch.randn(1, 8)
    decoder(embedding, prompts, torch.tensor([1]))[1].backward()
    trained = {
        name.split(".")[-2]
        for name, p in decoder.llm.named_parameters()
        if p.grad is not None
    }
    assert trained == {"adapter_down_proj", "adapter_up_proj"}
    # Dropout before the adapters, in training alone.
    for name, p in decoder.llm.named_parameters():
        if "adapter_up_proj" in name:
            torch.nn.init.normal_(p)
    first, second = (decoder(embedding, prompts)[0] for _ in range(2))
    assert not torch.equal(first, second)
    decoder.eval()
    first, second = (decoder(embedding, prompts)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_emotion_words_of_several_tokens_are_refused(qwen):
    """Posteriors compare tokens"""
    with pytest.raises(ValueError, match="astonished"):
        _decoder(qwen, words=["angry", "astonished"])


@pytest.mark.parametrize(
    "prompt", ["Voice", "{audio}\n{audio}", "{transcript} {audio}"]
)
def test_the_prompt_has_one_line_for_the_audio(qwen, prompt):
    """Otherwise the soft prompt would stand elsewhere, or be left out"""
    with pytest.raises(ValueError, match="one line with"):
        _decoder(qwen, user_prompt=prompt)
