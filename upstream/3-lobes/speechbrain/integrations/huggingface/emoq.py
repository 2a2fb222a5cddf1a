"""The two lobes of EmoQ, which recognizes emotions with a Q-Former and an LLM:
the EmoQ-Former fuses audio frames with the transcript, and the soft-prompt
decoder reads the emotion from what an LLM would answer.

Source paper: Y. Yang and M.-W. Mak, "EmoQ", https://arxiv.org/abs/2509.15775

Transformer from HuggingFace needs to be installed:
https://huggingface.co/transformers/installation.html

Authors
 * EmoQ authors 2026
"""

import copy
import math
import re

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain.dataio.dataio import length_to_mask
from speechbrain.integrations.huggingface.huggingface import (
    HFTransformersInterface,
)
from speechbrain.nnet.adapters import LoRA
from speechbrain.nnet.attention import MultiheadAttention


class EmoQFormer(HFTransformersInterface):
    """Fuses audio frames and a transcript into one embedding of unit length.

    It is a BERT, in the paper RoBERTa, whose input is learnable queries
    followed by the transcript. Both attend to each other; in every second layer
    the queries also attend to the audio, as in BLIP-2
    (https://arxiv.org/abs/2301.12597), whose layer this is. What the queries
    hold in the end is pooled by attention.

    Arguments
    ---------
    source : str
        HuggingFace hub name, or a local folder, of a BERT or RoBERTa:
        e.g "FacebookAI/roberta-base"
    save_path : str
        Path (dir) of the downloaded model.
    audio_dim : int
        Size of an audio frame.
    num_queries : int
        Number of learnable queries.
    cross_attention_every : int
        The queries attend to the audio in layers 0, n, 2n, ...
    pooling_heads : int
        Heads of the attentive pooling over the queries.
    **kwargs
        Extra keyword arguments passed to the `from_pretrained` function.

    Example
    -------
    >>> from transformers import RobertaConfig, RobertaModel
    >>> source = str(getfixture("tmpdir"))
    >>> config = RobertaConfig(
    ...     vocab_size=50,
    ...     hidden_size=16,
    ...     num_hidden_layers=2,
    ...     num_attention_heads=2,
    ... )
    >>> RobertaModel(config).save_pretrained(source)
    >>> emoq_former = EmoQFormer(source, source, audio_dim=8, pooling_heads=2)
    >>> frames, tokens = torch.rand(2, 20, 8), torch.randint(2, 50, (2, 6))
    >>> lens = torch.tensor([1.0, 0.5])
    >>> emoq_former(frames, lens, tokens, lens).shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        source,
        save_path,
        audio_dim,
        num_queries=32,
        cross_attention_every=2,
        pooling_heads=8,
        **kwargs,
    ):
        super().__init__(
            source=source,
            save_path=save_path,
            add_pooling_layer=False,
            **kwargs,
        )
        self.load_tokenizer(source=source)
        config, layers = self.model.config, self.model.encoder.layer
        dim, eps = config.hidden_size, config.layer_norm_eps
        self.queries = nn.Parameter(torch.empty(num_queries, dim))
        self.query_norm = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        # Encoders differ in the size of their frames' values.
        self.frame_norm = nn.LayerNorm(audio_dim)
        self.audio_projection = nn.Linear(audio_dim, dim)
        self.cross_attention = nn.ModuleDict(
            {
                str(index): MultiheadAttention(
                    nhead=config.num_attention_heads,
                    d_model=dim,
                    dropout=config.attention_probs_dropout_prob,
                )
                for index in range(0, len(layers), cross_attention_every)
            }
        )
        self.cross_norm = nn.ModuleDict(
            {key: nn.LayerNorm(dim, eps=eps) for key in self.cross_attention}
        )
        self.pooling_heads = pooling_heads
        self.pooling_score = nn.Sequential(
            nn.Linear(dim, dim),
            nn.Tanh(),
            nn.Linear(dim, pooling_heads, bias=False),
        )
        self._initialize()
        # The queries' feed-forward starts from the text's. In the last layer
        # nobody reads the text, and the queries take its place.
        self.query_feed_forward = nn.ModuleList(
            nn.ModuleList([layer.intermediate, layer.output])
            for layer in layers
        )
        for index in range(len(layers) - 1):
            self.query_feed_forward[index] = copy.deepcopy(
                self.query_feed_forward[index]
            )

    def _initialize(self):
        """Keeps the size of what passes through fresh weights, at any width."""
        nn.init.normal_(self.queries, std=self.model.config.initializer_range)
        for module in self.cross_attention.values():
            dim = module.att.embed_dim
            nn.init.normal_(module.att.in_proj_weight, std=1 / math.sqrt(dim))
            nn.init.normal_(module.att.out_proj.weight, std=1 / math.sqrt(dim))
        for module in [self.audio_projection, *self.pooling_score]:
            if isinstance(module, nn.Linear):
                scale = 1 / math.sqrt(module.in_features)
                nn.init.normal_(module.weight, std=scale)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, audio, audio_lens, tokens, token_lens):
        """Computes the embedding of each utterance.

        Arguments
        ---------
        audio : torch.Tensor
            Frames of any encoder, of shape (batch, time, audio_dim).
        audio_lens : torch.Tensor
            Relative lengths of the audio, of shape (batch,).
        tokens : torch.Tensor
            Token ids of the transcripts, of shape (batch, length).
        token_lens : torch.Tensor
            Relative lengths of the transcripts, of shape (batch,).

        Returns
        -------
        embeddings : torch.Tensor
            One for each utterance, of shape (batch, hidden) and unit L2 norm.
        """
        num_queries = len(self.queries)
        audio_mask = _inside(audio, audio_lens)
        text_mask = _inside(tokens, token_lens)
        queries = self.query_norm(self.queries).expand(len(tokens), -1, -1)
        queries = self.dropout(queries)
        # RoBERTa counts its positions by what is no padding token.
        padding = self.model.config.pad_token_id
        text = self.model.embeddings(tokens.masked_fill(~text_mask, padding))
        frames = self.audio_projection(self.frame_norm(audio))
        # What is added to the scores: nobody attends to padding.
        mask = F.pad(text_mask, (num_queries, 0), value=True)[:, None, None]
        mask = torch.zeros_like(mask, dtype=text.dtype).masked_fill(
            ~mask, torch.finfo(text.dtype).min
        )
        states = torch.cat([queries, text], dim=1)
        layers = self.model.encoder.layer
        for index, layer in enumerate(layers):
            states = layer.attention(states, attention_mask=mask)[0]
            queries, text = states.split([num_queries, tokens.shape[1]], dim=1)
            if str(index) in self.cross_attention:
                attended = self.cross_attention[str(index)](
                    queries,
                    frames,
                    frames,
                    key_padding_mask=~audio_mask,
                    return_attn_weights=False,
                )
                queries = self.cross_norm[str(index)](
                    queries + self.dropout(attended)
                )
            intermediate, output = self.query_feed_forward[index]
            queries = output(intermediate(queries), queries)
            if index < len(layers) - 1:
                text = layer.output(layer.intermediate(text), text)
            states = torch.cat([queries, text], dim=1)
        # Every head averages its slice of the features with its own weights.
        weights = self.pooling_score(queries).softmax(dim=1)
        slices = queries.unflatten(-1, (self.pooling_heads, -1))
        pooled = (weights[..., None] * slices).sum(dim=1).flatten(1)
        return F.normalize(pooled, dim=-1)


class SoftPromptProjector(nn.Module):
    """Maps embeddings of unit length into an LLM's word-embedding space.

    Arguments
    ---------
    embedding_dim : int
        Size of the embeddings.
    llm : LLaMA
        The LLM: a soft prompt starts as long as its word embeddings are on
        average.

    Example
    -------
    >>> from types import SimpleNamespace
    >>> words = nn.Embedding(100, 16)
    >>> llm = SimpleNamespace(
    ...     model=SimpleNamespace(get_input_embeddings=lambda: words)
    ... )
    >>> SoftPromptProjector(8, llm)(torch.rand(3, 8)).shape
    torch.Size([3, 16])
    """

    def __init__(self, embedding_dim, llm):
        super().__init__()
        words = llm.model.get_input_embeddings().weight.detach()
        dim = words.shape[1]
        self.linear = nn.Linear(embedding_dim, dim)
        nn.init.normal_(self.linear.weight, std=1 / math.sqrt(dim))
        nn.init.zeros_(self.linear.bias)
        norms = torch.linalg.vector_norm(words, dim=1, dtype=torch.float32)
        self.scale = nn.Parameter(norms.mean())

    def forward(self, embeddings):
        """Makes a soft prompt of each embedding.

        Arguments
        ---------
        embeddings : torch.Tensor
            Of shape (batch, embedding_dim) and unit L2 norm.

        Returns
        -------
        soft_prompts : torch.Tensor
            Of shape (batch, hidden size of the LLM).
        """
        return self.scale * self.linear(embeddings)


class SoftPromptDecoder(nn.Module):
    """Recognizes emotions by what an LLM would answer to a prompt, in which the
    embedding of the utterance stands in the place of "{audio}".

    Posteriors are a softmax over the logits of the emotion words; nothing is
    generated. The loss is the cross-entropy of the answer, in which the word
    weighs more than the end of the turn.

    Arguments
    ---------
    llm : LLaMA or AdaptedModel
        Any causal LM whose tokenizer has a chat template, as loaded by LLaMA
        with `resize=False`; frozen, most often with adapters.
    projector : SoftPromptProjector
        From embeddings to soft prompts.
    words : list of str
        The emotion words, in the order of the classes: one token each.
    system_prompt : str
        What the LLM is told first; "{words}" is replaced by the words.
    user_prompt : str
        What it is asked: a line with "{audio}", and others with "{transcript}"
        or "{speaker}", which are left out where there is none.
    answer : str
        What the answer begins with; the emotion word follows.
    word_weight : float
        Weight of the emotion word in the loss. The end of the turn weighs 1.
    adapter_dropout : float
        Dropout of what enters the LoRA adapters.
    max_text_tokens : int
        Longer transcripts are cut.

    Example
    -------
    >>> llm = LLaMA("Qwen/Qwen2.5-0.5B-Instruct", "save")  # doctest: +SKIP
    >>> decoder = SoftPromptDecoder(
    ...     llm,
    ...     SoftPromptProjector(768, llm),
    ...     words=["angry", "happy"],
    ...     system_prompt="Name the emotion: {words}.",
    ...     user_prompt="Transcript: {transcript}\\nVoice: {audio}",
    ... )  # doctest: +SKIP
    >>> prompts = [decoder.encode_prompt("Oh no!")]  # doctest: +SKIP
    >>> posteriors, _ = decoder(torch.rand(1, 768), prompts)  # doctest: +SKIP
    """

    def __init__(
        self,
        llm,
        projector,
        words,
        system_prompt,
        user_prompt,
        answer="Emotion:",
        word_weight=5.0,
        adapter_dropout=0.0,
        max_text_tokens=256,
    ):
        super().__init__()
        self.llm = llm
        self.projector = projector
        self.tokenizer = llm.tokenizer
        self.system_prompt = system_prompt.replace("{words}", ", ".join(words))
        self.user_prompt = user_prompt
        self.answer = answer
        self.word_weight = word_weight
        self.max_text_tokens = max_text_tokens
        audio_lines = [x for x in user_prompt.splitlines() if "{audio}" in x]
        if len(audio_lines) != 1 or audio_lines[0].count("{") != 1:
            raise ValueError(
                'The user prompt needs one line with "{audio}", and no other '
                f"field in it; it is {user_prompt!r}."
            )
        ids = [self._plain_ids(f" {word}") for word in words]
        several = [word for word, own in zip(words, ids) if len(own) > 1]
        if several or len({tuple(own) for own in ids}) < len(ids):
            raise ValueError(
                "Each emotion word has to be a token of its own in the LLM's "
                f"vocabulary, and {several or words} are not: choose others."
            )
        self.register_buffer(
            "word_ids", torch.tensor(ids).squeeze(1), persistent=False
        )
        for module in llm.modules():
            if isinstance(module, LoRA):
                module.adapter_down_proj.register_forward_pre_hook(
                    lambda down, inputs: F.dropout(
                        inputs[0], adapter_dropout, down.training
                    )
                )

    def encode_prompt(self, transcript, speaker=None):
        """Makes the prompt of an utterance.

        Arguments
        ---------
        transcript : str
            What was said.
        speaker : str
            The speaker's name, if it is known.

        Returns
        -------
        before : list of int
            Token ids before the soft prompt.
        after : list of int
            Token ids after it.
        """
        values = {"{transcript}": transcript, "{speaker}": speaker}
        # On one line each: a newline could pass for a new field.
        values = {
            field: " ".join((value or "").split())
            for field, value in values.items()
        }
        user = "\n".join(
            line
            for line in self.user_prompt.splitlines()
            if all(values[field] or field not in line for field in values)
        )
        # Characters for private use stand for the fields in the chat template.
        marks = dict(zip("\ue000\ue001\ue002", [*values, "{audio}"]))
        for mark, field in marks.items():
            user = user.replace(field, mark)
        rendered = self.tokenizer.apply_chat_template(
            [
                {"role": "system", "content": self.system_prompt},
                {"role": "user", "content": user},
            ],
            tokenize=False,
            add_generation_prompt=True,
        )
        before, after = [], []
        ids, space = before, ""
        for piece in re.split(f"([{''.join(marks)}])", rendered + self.answer):
            if piece not in marks:
                # BPE joins a space to the word that follows.
                space = " " if piece.endswith(" ") else ""
                ids += self.tokenizer(
                    piece[: len(piece) - len(space)], add_special_tokens=False
                )["input_ids"]
            elif marks[piece] == "{audio}":
                ids = after
            else:
                value = self._plain_ids(space + values[marks[piece]])
                ids += value[: self.max_text_tokens]
        return before, after

    def forward(self, embeddings, prompts, labels=None):
        """Computes posteriors and, with labels, the loss.

        Arguments
        ---------
        embeddings : torch.Tensor
            Of the utterances, of shape (batch, embedding_dim).
        prompts : list of tuple
            What `encode_prompt` gives for each.
        labels : torch.Tensor
            Class indices, of shape (batch,).

        Returns
        -------
        posteriors : torch.Tensor
            Of shape (batch, classes), float32.
        loss : torch.Tensor
            The weighted cross-entropy, or None without labels.
        """
        embed = self.llm.model.get_input_embeddings()
        device = embed.weight.device
        # A token stands where the soft prompt comes, and for a word that is not
        # known; what is after the state that is read does not matter.
        words = [0] * len(prompts)
        if labels is not None:
            words = self.word_ids[labels].tolist()
        rows = [
            torch.tensor([*before, 0, *after, word], device=device)
            for (before, after), word in zip(prompts, words)
        ]
        lens = torch.tensor([len(row) for row in rows], device=device)
        inputs = embed(nn.utils.rnn.pad_sequence(rows, batch_first=True))
        every = torch.arange(len(rows), device=device)
        places = torch.tensor([len(ids) for ids, _ in prompts], device=device)
        inputs = inputs.index_put(
            (every, places), self.projector(embeddings).to(inputs.dtype)
        )
        hidden = self.llm.model.base_model(
            inputs_embeds=inputs, attention_mask=length_to_mask(lens)
        ).last_hidden_state
        # The states before the word, and before the end of the turn.
        hidden = hidden[
            every[:, None], torch.stack([lens - 2, lens - 1], dim=1)
        ]
        output = self.llm.model.get_output_embeddings()
        posteriors = self._word_logits(output, hidden[:, 0]).softmax(dim=-1)
        if labels is None:
            return posteriors, None
        end = torch.full_like(labels, self.tokenizer.eos_token_id)
        targets = torch.stack([self.word_ids[labels], end], dim=1)
        losses = F.cross_entropy(
            output(hidden).float().flatten(0, 1),
            targets.flatten(),
            reduction="none",
        ).view(-1, 2)
        weights = losses.new_tensor([self.word_weight, 1.0])
        return posteriors, (losses * weights).mean(0).sum() / weights.sum()

    def _word_logits(self, output, hidden):
        """In float32 also in half precision, where the likeliest would tie."""
        with torch.autocast(hidden.device.type, enabled=False):
            bias = getattr(output, "bias", None)
            return F.linear(
                hidden.float(),
                output.weight[self.word_ids].float(),
                None if bias is None else bias[self.word_ids].float(),
            )

    def _plain_ids(self, text):
        """Token ids of text in which no special token is recognized."""
        return self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True
        )["input_ids"]


def _inside(x, lens):
    """What of (batch, time, ...) is no padding, of shape (batch, time)."""
    counts = (lens * x.shape[1]).round()
    return length_to_mask(counts, x.shape[1], dtype=torch.bool)
