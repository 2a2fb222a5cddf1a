"""The decoder: an LLM that reads the fused embedding as a soft prompt.

The embedding e'_q is projected into the LLM's space and stands in the place of
``<AUDIO>`` in a chat; the emotion is read from what the LLM would say next.

Source: Y. Yang and M.-W. Mak, https://arxiv.org/abs/2509.15775, Sec. 2.3.
"""

from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from emoq_modules.lobes.backbones import load_tokenizer
from emoq_modules.lobes.llm import load_llm
from emoq_modules.lobes.llm_check import check_llm
from emoq_modules.lobes.packed_llm import PackedLLM
from emoq_modules.lobes.projector import Projector

# LoRA of the paper; on which layers and with which alpha, it does not say.
PAPER_LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.1}
PAPER_LORA |= {"target_modules": "all-linear"}


class SoftPromptDecoder(nn.Module):
    """Projector, prompt, LLM and LoRA: from embeddings to emotion words.

    Source: EmoQ, Sec. 2.3. The LLM is frozen; the projector and the LoRA
    adapter train. The vocabulary is never resized.

    Where the weights no longer change, set ``cache_prefix``: what the LLM
    makes of the words that every prompt begins with is then computed once, and
    kept from call to call without a gradient.

    Arguments
    ---------
    source : str | Path | dict | transformers.PretrainedConfig
        Any causal LM, as ``load_llm`` takes it; a configuration needs
        ``tokenizer`` too.
    prompt : PromptTemplate
        The chat around the soft prompt.
    labels : list of str
        The classes, in their order.
    embedding_dim : int | None
        Size of the embeddings; None if the prompt has no ``<AUDIO>``.
    lora : dict | None
        Arguments of ``peft.LoraConfig``; None trains the projector alone.
    word_weight : float
        Weight w of the emotion word in Eq. 7; the end of the turn weighs 1.
    tokenizer : str | None
        Name or folder of the tokenizer, if it is not ``source``.
    revision : str | None
        Branch, tag or commit on the hub.
    dtype : str
        Precision of the frozen weights, for instance ``bfloat16``.
    gradient_checkpointing : bool
        Trades a second forward pass for memory while training.
    quantization : str | None
        ``nf4`` keeps the frozen weights in 4 bits and computes in ``dtype``.
    row_tokens : int
        The prompts of a batch lie side by side in rows of about this many
        tokens, with what all of them begin with once a row; 0 gives each a row
        of its own, which the LLM reads as it would by itself. So do LLMs whose
        layers carry a state, such as Mamba's.
    words : dict | None
        What the LLM says for a label where it is not the label itself, for
        instance ``{"sad": "sadness"}``.
    chat_template_options : dict | None
        What else the chat template takes, such as ``enable_thinking``.
    check : bool
        Whether the chat template, and an LLM with trained weights, are tried
        for some seconds first.

    Raises
    ------
    BackboneError
        If the LLM, its tokenizer or bitsandbytes is not to be had.
    ValueError
        If prompt and ``embedding_dim``, or tokenizer and LLM do not fit, or
        as ``load_llm`` and ``check_llm`` do.

    Example
    -------
    >>> from emoq_modules import PromptTemplate
    >>> from emoq_modules.lobes.small_backbones import build_llm
    >>> labels = ["happy", "sad"]
    >>> decoder = SoftPromptDecoder(
    ...     build_llm(getfixture("tmp_path"), ["Good morning!"], labels),
    ...     PromptTemplate("Which of {labels}?", "{text}\\nVoice: <AUDIO>"),
    ...     labels,
    ...     embedding_dim=8,
    ... )
    >>> prompts = decoder.prompt.encode_batch(["Good morning!"])
    >>> decoder.posteriors(torch.rand(1, 8), prompts).shape
    torch.Size([1, 2])
    """

    def __init__(
        self,
        source,
        prompt,
        labels,
        embedding_dim=None,
        lora=PAPER_LORA,
        word_weight=5.0,
        tokenizer=None,
        revision=None,
        dtype="float32",
        gradient_checkpointing=False,
        quantization=None,
        row_tokens=1024,
        words=None,
        chat_template_options=None,
        check=False,
    ):
        super().__init__()
        if prompt.has_audio != (embedding_dim is not None):
            raise ValueError(
                "The decoder needs embedding_dim exactly when the prompt holds "
                f"<AUDIO>; embedding_dim is {embedding_dim} and the user turn "
                f"is {prompt.user!r}."
            )
        self.word_weight = word_weight
        self.cache_prefix = False
        self.row_tokens = row_tokens
        # First, as what is wrong with it shows before the weights are there.
        self.prompt = prompt.bind(
            load_tokenizer(tokenizer or source, revision),
            labels,
            words=words,
            **(chat_template_options or {}),
        )
        if check:
            self.prompt.check()
        llm = load_llm(source, revision, getattr(torch, dtype), quantization)
        embed, output = llm.get_input_embeddings(), llm.get_output_embeddings()
        tokens, rows = len(self.prompt.tokenizer), len(embed.weight)
        if tokens > rows:
            raise ValueError(
                f"The tokenizer has {tokens} tokens and the LLM {rows}: they "
                "do not belong together."
            )
        if check and isinstance(source, str | Path):
            rows = [ids[0] for ids in self.prompt.label_ids]
            score = partial(_exact_logits, output, rows=rows)
            check_llm(llm, self.prompt, score, row_tokens)
        if gradient_checkpointing:
            llm.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        llm.requires_grad_(False)
        if lora is not None:
            # Here, as an LLM with LoRA merged into it needs no peft.
            from peft import LoraConfig, get_peft_model

            try:
                llm = get_peft_model(llm, LoraConfig(**lora)).get_base_model()
            except ValueError as error:
                raise ValueError(
                    f"LoRA does not go on {type(llm).__name__} as it is set: "
                    "change lora_target_modules, or set lora_dropout to 0 "
                    f"({' '.join(str(error).split())})."
                ) from error
        layers = llm.get_input_embeddings(), llm.get_output_embeddings()
        if layers != (embed, output):
            raise ValueError(
                "LoRA is on the LLM's word embeddings or its output layer, of "
                "which the decoder reads rows: leave them out of target_modules"
                " (lora_target_modules) and modules_to_save."
            )
        self.llm = llm
        # Any token does for padding: it is not read.
        self._reader = PackedLLM(
            llm, self.prompt.prefix_ids, self.prompt.eos_id
        )
        self.projector = None
        if embedding_dim is not None:
            self.projector = Projector(embedding_dim, embed)

    def forward(
        self,
        embeddings,
        prompts,
        labels=None,
        with_posteriors=True,
        class_weights=None,
    ):
        """Computes loss and posteriors, in one pass where labels are one token.

        Distributed training goes through ``forward``.

        Arguments
        ---------
        embeddings : torch.Tensor | tuple | None
            ``(B, embedding_dim)``; or several soft prompts each, ``(B, N,
            embedding_dim)``, and their relative lengths, ``(B,)``; None if the
            prompt has no ``<AUDIO>``.
        prompts : list of tuple
            What ``prompt.encode_batch`` gives.
        labels : torch.Tensor | None
            Class indices, ``(B,)``; None computes no loss.
        with_posteriors : bool
            Whether to compute the posteriors.
        class_weights : torch.Tensor | None
            What the weight w of each emotion word is multiplied with, ``(C,)``,
            as of ``inverse_frequency_weights``; None is 1.

        Returns
        -------
        loss : torch.Tensor | None
            As of ``loss``.
        posteriors : torch.Tensor | None
            As of ``posteriors``.
        """
        if labels is None:
            return None, self.posteriors(embeddings, prompts)
        answers = self._answers(labels)
        hidden = self._teacher_forced(embeddings, prompts, answers)
        weights = self._weights(answers, labels, class_weights)
        weights = torch.tensor(weights, device=hidden.device)
        losses = self._token_losses(hidden, answers)
        loss = (weights * losses).sum() / weights.sum()
        if not with_posteriors:
            return loss, None
        if not self.prompt.labels_are_single_tokens:
            return loss, self._whole_label_posteriors(embeddings, prompts)
        firsts = torch.cumsum(
            torch.tensor([0] + [len(answer) for answer in answers[:-1]]), dim=0
        )
        return loss, self._label_posteriors(hidden[firsts.to(hidden.device)])

    def loss(self, embeddings, prompts, labels):
        """Token-weighted cross-entropy of the answers, Eq. 7.

        It is divided by the sum of the weights. Only the hidden states before
        the answer's tokens are projected to the vocabulary.

        Arguments
        ---------
        embeddings : torch.Tensor | tuple | None
            As ``forward`` takes them.
        prompts : list of tuple
            Likewise.
        labels : torch.Tensor
            Class indices, ``(B,)``.

        Returns
        -------
        torch.Tensor
            The loss, a scalar.
        """
        return self(embeddings, prompts, labels, with_posteriors=False)[0]

    def posteriors(self, embeddings, prompts):
        """Posterior probabilities of the emotions, Eqs. 8 and 9.

        One hidden state, that of the last prompt token, is projected to the C
        rows of the emotion words; nothing is generated. If a word is more than
        one token, the words' length-normalized log-probabilities stand in for
        their logits.

        Arguments
        ---------
        embeddings : torch.Tensor | tuple | None
            As ``forward`` takes them.
        prompts : list of tuple
            Likewise.

        Returns
        -------
        torch.Tensor
            Posteriors, ``(B, C)``, float32.
        """
        if not self.prompt.labels_are_single_tokens:
            return self._whole_label_posteriors(embeddings, prompts)
        hidden = self._last_states(embeddings, prompts, [1] * len(prompts))
        return self._label_posteriors(hidden)

    def answer_weight(self, labels, class_weights=None):
        """The sum of the weights w of Eq. 7 over a batch's answers.

        Arguments
        ---------
        labels : torch.Tensor
            Class indices, ``(B,)``.
        class_weights : torch.Tensor | None
            As ``forward`` takes them.

        Returns
        -------
        float
            The denominator of ``loss`` for these labels.
        """
        return sum(self._weights(self._answers(labels), labels, class_weights))

    def _teacher_forced(self, embeddings, prompts, answers):
        continued = [
            (before, after + answer[:-1])
            if self.projector is not None
            else (before + answer[:-1], after)
            for (before, after), answer in zip(prompts, answers, strict=True)
        ]
        # An answer of n tokens is predicted from the last n positions.
        return self._last_states(embeddings, continued, list(map(len, answers)))

    def _last_states(self, embeddings, prompts, counts):
        soft_prompts = None
        if isinstance(embeddings, tuple):
            several, lens = embeddings
            numbers = (lens.float() * several.shape[1]).round().long().tolist()
            own = [row[:n] for row, n in zip(several, numbers, strict=True)]
            soft_prompts = self.projector(torch.cat(own)).split(numbers)
        elif self.projector is not None:
            soft_prompts = self.projector(embeddings).split(1)
        return self._reader.last_states(
            prompts, soft_prompts, counts, self.row_tokens, self.cache_prefix
        )

    def _answers(self, labels):
        words, ids = self.prompt.labels, self.prompt.label_ids
        if (labels >= len(words)).any():
            raise ValueError(
                f"There is a label {labels.max()}, but there are {len(words)} "
                f"emotion words, {', '.join(words)}: the classes are counted "
                "from 0, in this order."
            )
        return [[*ids[x], self.prompt.eos_id] for x in labels.tolist()]

    def _weights(self, answers, labels, class_weights):
        """The weight w of each token of the answers, one after another."""
        factors = [1.0] * len(answers)
        if class_weights is not None:
            factors = class_weights[labels.to(class_weights.device)].tolist()
        weights = []
        for answer, factor in zip(answers, factors, strict=True):
            weights += [self.word_weight * factor] * (len(answer) - 1) + [1.0]
        return weights

    def _token_losses(self, hidden, answers):
        """Cross-entropy of each token of the answers, one after another."""
        targets = torch.tensor(sum(answers, []), device=hidden.device)
        logits = self.llm.get_output_embeddings()(hidden).float()
        return F.cross_entropy(logits, targets, reduction="none")

    def _label_posteriors(self, hidden):
        """From the hidden states before the word, ``(B, d_l)``."""
        rows = [ids[0] for ids in self.prompt.label_ids]
        layer = self.llm.get_output_embeddings()
        return _exact_logits(layer, hidden, rows).softmax(dim=-1)

    def _whole_label_posteriors(self, embeddings, prompts):
        layer, scores = self.llm.get_output_embeddings(), []
        for ids in self.prompt.label_ids:
            hidden = self._teacher_forced(
                embeddings, prompts, [ids] * len(prompts)
            ).view(len(prompts), len(ids), -1)
            # In parts: of half precision there is no whole copy in float32.
            totals = [
                _exact_logits(
                    layer, hidden, slice(start, start + 2**14)
                ).logsumexp(dim=-1)
                for start in range(0, len(layer.weight), 2**14)
            ]
            logits = _exact_logits(layer, hidden, ids)  # (B, S, S)
            chosen = logits.diagonal(dim1=1, dim2=2)
            scores.append((chosen - torch.stack(totals).logsumexp(0)).mean(1))
        return torch.stack(scores, dim=1).softmax(dim=-1)


def _exact_logits(layer, hidden, rows):
    """Those of some tokens, in float32 whatever the precision around.

    bfloat16 has steps of 0.125 from 16 on: the likeliest two would often be
    equal, and the class that is listed first would be taken.
    """
    if isinstance(rows, list):
        rows = torch.tensor(rows, device=hidden.device)
    bias = None if layer.bias is None else layer.bias[rows].float()
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden.float(), layer.weight[rows].float(), bias)
