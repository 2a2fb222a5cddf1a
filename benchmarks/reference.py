"""Stage 2 as one writes it today with transformers and peft alone.

What the project is measured against. It is meant to be good code of its kind:
the frozen audio encoder runs inside the step, sequences are padded on the
right as they come, the LLM's own ``forward`` gives logits over the whole
vocabulary at every position, the loss is cross-entropy over them with all
positions but the answer's ignored, and ``generate`` answers. Attention is what
transformers chooses.

The modules are the project's, so that both compute the same thing with the
same parameters: tests/benchmarks/test_reference.py holds one against the other.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100  # transformers' mark of positions without a target


class PlainStage2(nn.Module):
    """EmoQ-Former, projector and LLM with LoRA, put together plainly.

    The encoder computes the frames in every step; it is None where frames are
    given. The decoder lends its projector, LLM, prompt and weight of the word;
    none of its methods is called. Emotion words have to be one token each, or
    ``ValueError``: the first step of ``generate`` would not tell their
    posteriors.
    """

    def __init__(self, encoder, fusion, decoder):
        super().__init__()
        self.prompt = decoder.prompt
        if not self.prompt.labels_are_single_tokens:
            raise ValueError(
                f"The emotion words {', '.join(self.prompt.labels)} are not "
                "one token each in this tokenizer: choose other words, or "
                "another LLM."
            )
        self.encoder = encoder
        self.fusion = fusion
        self.projector = decoder.projector
        self.llm = decoder.llm
        self.word_weight = decoder.word_weight

    def forward(self, audio, tokens, prompts, labels):
        """The loss of a batch, Eq. 7, as a scalar.

        The audio is waveforms ``(B, T)``, or frames ``(B, T', audio_dim)``, and
        tokens ``(B, L)`` are the transcript's: both with relative lengths. The
        prompts are ``TokenizedPrompt.encode_batch``'s, labels ``(B,)`` indices.
        """
        answers = [
            [*self.prompt.label_ids[label], self.prompt.eos_id]
            for label in labels.tolist()
        ]
        prompts = self._embedded(audio, tokens, prompts)
        inputs, mask = self._pad(
            [
                torch.cat([prompt, self._embed(answer)])
                for prompt, answer in zip(prompts, answers, strict=True)
            ],
            side="right",
        )
        targets = inputs.new_full(mask.shape, IGNORED, dtype=torch.long)
        weights = inputs.new_zeros(mask.shape)
        for row, (prompt, answer) in enumerate(
            zip(prompts, answers, strict=True)
        ):
            begin, end = len(prompt), len(prompt) + len(answer)
            targets[row, begin:end] = torch.tensor(answer)
            weights[row, begin:end] = self.word_weight
            weights[row, end - 1] = 1.0

        logits = self.llm(inputs_embeds=inputs, attention_mask=mask).logits
        # A position predicts the next token. The targets are moved and not the
        # logits, (B, S, |V|), of which a copy would take time and memory.
        targets = F.pad(targets[:, 1:], (0, 1), value=IGNORED)
        weights = F.pad(weights[:, 1:], (0, 1))
        losses = F.cross_entropy(
            logits.float().flatten(0, 1),
            targets.flatten(),
            ignore_index=IGNORED,
            reduction="none",
        )
        return (weights.flatten() * losses).sum() / weights.sum()

    @torch.no_grad()
    def predict(self, audio, tokens, prompts):
        """Posteriors ``(B, C)`` of the first token, and what is answered.

        ``generate`` may write as many tokens as the longest right answer has: a
        trained LLM ends its turn there.
        """
        # Here padding has to be on the left: what is generated follows the end.
        inputs, mask = self._pad(
            self._embedded(audio, tokens, prompts), side="left"
        )
        output = self.llm.generate(
            inputs_embeds=inputs,
            attention_mask=mask,
            max_new_tokens=max(map(len, self.prompt.label_ids)) + 1,
            do_sample=False,
            eos_token_id=self.prompt.eos_id,
            pad_token_id=self.prompt.eos_id,
            output_logits=True,
            return_dict_in_generate=True,
        )
        words = [word[0] for word in self.prompt.label_ids]
        posteriors = output.logits[0][:, words].float().softmax(dim=-1)
        answers = self.prompt.tokenizer.batch_decode(
            output.sequences, skip_special_tokens=True
        )
        return posteriors, answers

    def _embedded(self, audio, tokens, prompts):
        """The LLM's inputs up to the answer, ``(S, d_l)`` each."""
        if self.encoder is not None:
            with torch.no_grad():
                audio = self.encoder(*audio)
        soft = self.projector(self.fusion(*audio, *tokens))  # (B, d_l)
        return [
            torch.cat([self._embed(before), vector[None], self._embed(after)])
            for (before, after), vector in zip(prompts, soft, strict=True)
        ]

    def _embed(self, ids):
        layer = self.llm.get_input_embeddings()
        return layer(torch.tensor(ids, device=layer.weight.device))

    def _pad(self, sequences, side):
        """Inputs ``(B, S, d_l)`` and the attention mask ``(B, S)``."""
        inputs = pad_sequence(sequences, True, padding_side=side)
        mask = pad_sequence(
            [s.new_ones(len(s), dtype=torch.long) for s in sequences],
            True,
            padding_side=side,
        )
        return inputs, mask
