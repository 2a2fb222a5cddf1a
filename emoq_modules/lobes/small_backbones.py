"""Backbones built on the spot: small, of random weights, with nothing to fetch.

They have the real architectures and file formats, so everything that loads
RoBERTa or Qwen2.5 loads them; tokenizers are trained on the transcripts of the
training split. They serve trials without a network, tests and examples, and
know of language what EmoQ's own training teaches them.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from emoq_modules.errors import BackboneError

_SIZES = {
    "hidden_size": 96,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "initializer_range": 0.1,
}
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_text_encoder(folder, texts, vocab_size=2000, seed=1234, **config):
    """Builds a small RoBERTa with a tokenizer of its own.

    Arguments
    ---------
    folder : str
        Where to save it, in Hugging Face's format.
    texts : list of str | str
        Transcripts to train the tokenizer on, or the manifest that has them.
    vocab_size : int
        Size of the vocabulary, at most.
    seed : int
        Seed of the random weights.
    **config : dict
        Values of ``transformers.RobertaConfig`` in place of those here.

    Returns
    -------
    str
        The folder, a ``source`` for ``EmoQFormer``.

    Example
    -------
    >>> folder = getfixture("tmp_path") / "text_encoder"
    >>> build_text_encoder(folder, ["Oh no!", "Oh yes!"]) == str(folder)
    True
    """
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = _train_tokenizer(_transcripts(texts), vocab_size, special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    values = {"max_position_embeddings": 258, "type_vocab_size": 1}
    values |= {**_SIZES, "num_hidden_layers": 3, **config}
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        **values,
    )
    return _save(
        folder,
        lambda: RobertaModel(config, add_pooling_layer=False),
        seed,
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<s>",
            cls_token="<s>",
            pad_token="<pad>",
            eos_token="</s>",
            sep_token="</s>",
            unk_token="<unk>",
            mask_token="<mask>",
        ),
    )


def build_llm(
    folder,
    texts,
    words,
    vocab_size=2000,
    seed=1234,
    model_type="qwen2",
    **config,
):
    """Builds a small LLM with a tokenizer and a chat template of its own.

    Arguments
    ---------
    folder : str
        Where to save it, in Hugging Face's format.
    texts : list of str | str
        Transcripts to train the tokenizer on, or the manifest that has them.
    words : list of str
        The emotion words, each to become one token.
    vocab_size : int
        Size of the vocabulary, at most.
    seed : int
        Seed of the random weights.
    model_type : str
        The architecture, as transformers calls it: any causal LM whose
        configuration has the values that Qwen2's has, for instance ``llama``.
    **config : dict
        Values of its configuration in place of those here.

    Returns
    -------
    str
        The folder, a ``source`` for ``SoftPromptDecoder``.

    Example
    -------
    >>> folder = getfixture("tmp_path") / "llm"
    >>> build_llm(folder, ["Oh no!"], ["happy", "sad"]) == str(folder)
    True
    """
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    # Merges are learned by frequency: what is seen often is one token.
    often = [f" {word}" for word in words] * 1000
    tokenizer = _train_tokenizer(
        _transcripts(texts) + often, vocab_size, special
    )
    values = {**_SIZES, "num_hidden_layers": 2, "num_key_value_heads": 2}
    config = AutoConfig.for_model(
        model_type,
        vocab_size=tokenizer.get_vocab_size(),
        bos_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
        **{**values, **config},
    )
    return _save(
        folder,
        lambda: AutoModelForCausalLM.from_config(config),
        seed,
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<|endoftext|>",
            eos_token="<|im_end|>",
            additional_special_tokens=["<|im_start|>"],
            chat_template=_CHAT_TEMPLATE,
        ),
    )


def _transcripts(texts):
    if isinstance(texts, list):
        return texts
    if not Path(texts).exists():
        raise BackboneError(
            f"There is no manifest {texts} yet, with whose transcripts the "
            "tokenizer is to be trained: prepare the corpus, or train, first."
        )
    rows = json.loads(Path(texts).read_text(encoding="utf-8"))
    return [row["text"] for row in rows.values()]


def _train_tokenizer(texts, vocab_size, special):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        # Bytes never seen in training must still have a token.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _save(folder, make_model, seed, tokenizer):
    # The weights are the seed's, and the run's own draws stay as they were.
    # They are kept, wherever the model around them is made.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        model = make_model()
    folder = Path(folder)
    # Never half of a file, even for a rank that loads it at this moment.
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        folder.mkdir(parents=True, exist_ok=True)
        for file in partial.iterdir():
            os.replace(file, folder / file.name)
    except SafetensorError as error:
        raise BackboneError(
            f"{folder} cannot be written ({error}): is the disk full?"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return str(folder)
