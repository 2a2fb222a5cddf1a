"""Runs an LLM over prompts, packed into rows, up to its last hidden states.

Apart from the decoder, which makes losses and posteriors of these: what a kind
of LLM asks for (masks, positions, the name of its cache) is known here alone.

Prompts share rows where attention is all that joins tokens, and takes masks
and positions as they are given. Where a layer carries a state from token to
token (Mamba, LFM2, RecurrentGemma, Qwen3-Next), or attention makes a bias of
distances itself (Bloom, MPT, Falcon's), each prompt has a row of its own, which
the LLM reads as it would by itself.
"""

import inspect

import torch
from transformers import DynamicCache

from emoq_modules.lobes.packing import Packed, pack


class PackedLLM:
    """An LLM that reads packed prompts, each as it would read it alone.

    Arguments
    ---------
    llm : transformers.PreTrainedModel
        The LLM, with or without LoRA in its layers.
    prefix_ids : list of int
        Token ids that every prompt begins with, and goes on after.
    pad_id : int
        Any token: it pads, and stands where a soft prompt comes.

    Example
    -------
    >>> from emoq_modules.lobes.llm import load_llm
    >>> tiny = {"model_type": "qwen2", "vocab_size": 50, "hidden_size": 16}
    >>> tiny |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    >>> tiny |= {"num_key_value_heads": 1, "intermediate_size": 32}
    >>> reader = PackedLLM(load_llm(tiny), prefix_ids=[7], pad_id=0)
    >>> prompts = [([7, 8], [9]), ([7, 1, 2], [3])]
    >>> soft_prompts = [torch.rand(1, 16), torch.rand(4, 16)]
    >>> reader.last_states(prompts, soft_prompts, [1, 2]).shape
    torch.Size([3, 16])
    """

    def __init__(self, llm, prefix_ids, pad_id):
        self.llm = llm
        self.windows = _windows(llm)
        self.prefix_ids = prefix_ids
        self.pad_id = pad_id
        self._cached_prefixes = {}  # by device and precision
        self._adapted = [
            module
            for module in llm.modules()
            if hasattr(module, "cast_input_dtype_enabled")
        ]

    def last_states(
        self, prompts, soft_prompts, counts, row_tokens=0, keep_prefix=False
    ):
        """Computes the last hidden states before what is to be predicted.

        Arguments
        ---------
        prompts : list of tuple
            Token ids before and after the soft prompts, of each.
        soft_prompts : list of torch.Tensor | None
            Those of each, ``(N, d_l)``; None if there are none.
        counts : list of int
            How many states are wanted of each prompt, from its end.
        row_tokens : int
            As of ``SoftPromptDecoder``.
        keep_prefix : bool
            Whether what the LLM makes of the prefix is kept from call to call,
            where no gradient is asked for.

        Returns
        -------
        torch.Tensor
            ``(sum of counts, d_l)``, one prompt after another.
        """
        self._leave_casts_to_autocast()
        packs = row_tokens and self.windows is not None
        numbers = [0] * len(prompts)
        if soft_prompts is not None:
            numbers = list(map(len, soft_prompts))
        sequences = [
            before + [self.pad_id] * number + after
            for (before, after), number in zip(prompts, numbers, strict=True)
        ]
        embed = self.llm.get_input_embeddings()
        shared = len(self.prefix_ids) if packs else 0
        packed = pack(sequences, shared, row_tokens * packs, self.pad_id)
        packed = Packed(*(part.to(embed.weight.device) for part in packed))
        inputs = embed(packed.tokens)  # (R, S, d_l)
        if soft_prompts is not None:
            firsts = [len(before) for before, _ in prompts]
            where = _where(packed, firsts, numbers)
            projected = torch.cat(list(soft_prompts)).to(inputs.dtype)
            inputs = inputs.index_put(where, projected)
        given, known = {}, 0
        if packs:
            past = None
            if keep_prefix and not torch.is_grad_enabled():
                past = self._prefix_cache(len(inputs))
                known = past.get_seq_length()
            given = {
                "attention_mask": self._masks(packed, known, inputs.dtype),
                "position_ids": packed.positions[:, known:],
                self._cache_argument(): past,
            }
        # What pads comes after the prompt, where nothing is read.
        hidden = self.llm.base_model(
            inputs_embeds=inputs[:, known:], use_cache=False, **given
        ).last_hidden_state
        firsts = [
            len(sequence) - count
            for sequence, count in zip(sequences, counts, strict=True)
        ]
        rows, columns = _where(packed, firsts, counts)
        return hidden[rows, columns - known]

    def _prefix_cache(self, num_rows):
        """Keys and values of what every prompt begins with, in each row."""
        embed = self.llm.get_input_embeddings()
        device = embed.weight.device
        autocast = torch.is_autocast_enabled(device.type)
        kind = (device, embed.weight.dtype, autocast)
        if kind not in self._cached_prefixes:
            seen = DynamicCache()
            if self.prefix_ids:
                tokens = torch.tensor([self.prefix_ids], device=device)
                self.llm.base_model(
                    inputs_embeds=embed(tokens),
                    use_cache=True,
                    **{self._cache_argument(): seen},
                )
            self._cached_prefixes = {
                kind: [(layer.keys, layer.values) for layer in seen.layers]
            }
        cache = DynamicCache()
        for index, states in enumerate(self._cached_prefixes[kind]):
            keys, values = (
                state.expand(num_rows, -1, -1, -1) for state in states
            )
            cache.update(keys, values, index)
        return cache

    def _cache_argument(self):
        """What transformers calls it: ``cache`` from some release on."""
        arguments = inspect.signature(self.llm.base_model.forward).parameters
        return "cache" if "cache" in arguments else "past_key_values"

    def _leave_casts_to_autocast(self):
        """Has peft cast what its layers get only where autocast does not.

        It would make copies in float32, of which autocast makes others in
        half precision. The switch stays as it is set: gradient checkpointing
        comes by here once more, in the backward pass.
        """
        device = self.llm.get_input_embeddings().weight.device.type
        wanted = not torch.is_autocast_enabled(device)
        for module in self._adapted:
            module.cast_input_dtype_enabled = wanted

    def _masks(self, packed, known, dtype):
        """What each kind of layer attends to, ``(R, 1, S - known, S)``."""
        masks, places = {}, packed.positions
        distances = places[:, known:, None] - places[:, None]
        for kind, window in self.windows.items():
            mask = packed.attention_mask[:, :, known:]
            if window is not None:  # in a sequence's own places
                mask = mask & (distances < window)[:, None]
            if self.llm.config._attn_implementation == "eager":
                # It adds the mask to the scores.
                added = torch.zeros_like(mask, dtype=dtype)
                mask = added.masked_fill(~mask, torch.finfo(dtype).min)
            masks[kind] = mask
        return masks if len(masks) > 1 else mask


def _where(packed, firsts, numbers):
    """Rows and columns of some tokens of each sequence, from the first on."""
    places = [
        (index, first + k)
        for index, first in enumerate(firsts)
        for k in range(numbers[index])
    ]
    # Of as many dimensions where there is none, as of frames all left out.
    places = torch.tensor(places, dtype=torch.long).view(-1, 2)
    owners, places = places.to(packed.rows.device).T
    return packed.rows[owners], packed.shifts[owners] + places


def _windows(llm):
    """How far each kind of layer sees, None without end.

    None in the place of all if rows cannot be shared.
    """
    config = llm.config.get_text_config()
    if (
        getattr(llm, "_is_stateful", False)
        or not getattr(llm, "_supports_attention_backend", False)
        or getattr(config, "attention_chunk_size", None) is not None
    ):
        return None
    windows = {
        "full_attention": None,
        "sliding_attention": getattr(config, "sliding_window", None),
    }
    # Without types all layers are of the kind that the window tells.
    layer_types = getattr(config, "layer_types", None) or ["sliding_attention"]
    if not set(layer_types) <= set(windows):
        return None
    return {kind: windows[kind] for kind in layer_types}
