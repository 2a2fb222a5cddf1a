"""Tries an LLM for a few seconds, before hours of training are spent on it."""

import torch

from emoq_modules.lobes.packed_llm import PackedLLM

# How far apart, for their size, may be last hidden states of a prompt alone and
# among others, and logits. Rounding of SmolLM2 in bfloat16: 0.02 and 0.002.
_EXACT, _ROUNDED = (1e-3, 1e-3), (0.15, 0.02)
_SAID = ("Oh no, what have you done to my car?", "Ross")


@torch.no_grad()
def check_llm(llm, prompt, score, row_tokens):
    """Refuses an LLM of which the decoder would not make what it says.

    Two prompts are read by the LLM alone, from their tokens, and then packed.

    Arguments
    ---------
    llm : transformers.PreTrainedModel
        The LLM, not in training.
    prompt : TokenizedPrompt
        The prompt it is to read.
    score : callable
        From last hidden states ``(B, d_l)`` to the logits of the words' first
        tokens, ``(B, C)``.
    row_tokens : int
        As of ``SoftPromptDecoder``.

    Raises
    ------
    ValueError
        If prompt, tokenizer and LLM do not fit each other; it says which.
    """
    name = type(llm).__name__
    of_states, of_logits = _EXACT if llm.dtype.itemsize > 2 else _ROUNDED
    _check_special_tokens(llm, prompt.tokenizer)
    prompts = [prompt.encode(), prompt.encode(*_SAID)]
    words = [ids[0] for ids in prompt.label_ids]
    reader = PackedLLM(llm, prompt.prefix_ids, prompt.eos_id)
    soft = None
    if prompt.template.has_audio:
        tokens = torch.tensor([words[0]] * 2, device=llm.device)
        soft = llm.get_input_embeddings()(tokens).split(1)

    def differ(*how):
        states = reader.last_states(prompts, soft, [1, 1], *how)
        return _apart(states, alone) > of_states

    try:
        alone, logits = _alone(llm, prompts, prompt.template, words[0])
        differs = differ(row_tokens, False) or differ(row_tokens, True)
        scores = score(alone)
    except Exception as error:
        raise ValueError(
            f"{name} cannot be run as the decoder runs it: choose another LLM "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]})."
        ) from error
    if not torch.isfinite(alone).all():
        raise ValueError(
            f"{name} computes what is no number in {llm.dtype}: set llm_dtype "
            "to bfloat16 or float32."
        )
    if differs:
        advice = "choose another LLM, which reads from left to right"
        if not differ(0):
            advice = "set row_tokens to 0, which gives each a row of its own"
        raise ValueError(
            f"{name} makes something else of a prompt in a batch than of the "
            f"same alone: {advice}."
        )
    if _apart(scores, logits[:, words]) > of_logits:
        raise ValueError(
            f"{name} makes other logits than its output layer's rows have: it "
            "changes them afterwards, which the decoder does not follow. "
            "Choose another LLM."
        )


def _alone(llm, prompts, template, token):
    """Last hidden states and logits of whole prompts, by the LLM itself."""
    states, logits = [], []
    hook = llm.get_output_embeddings().register_forward_pre_hook(
        lambda layer, inputs: states.append(inputs[0][0, -1])
    )
    try:
        for before, after in prompts:
            tokens = before + [token] * template.has_audio + after
            found = llm(
                torch.tensor([tokens], device=llm.device), use_cache=False
            )
            logits.append(found.logits[0, -1])
    finally:
        hook.remove()
    return torch.stack(states), torch.stack(logits)


def _apart(found, expected):
    differences = torch.linalg.vector_norm((found - expected).float(), dim=1)
    sizes = torch.linalg.vector_norm(expected.float(), dim=1)
    return (differences / sizes).max().item()


def _check_special_tokens(llm, tokenizer):
    ends = llm.config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    known = {None, *tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    if not known & set(ends):
        raise ValueError(
            f"{type(llm).__name__} ends a text with the token {ends[0]}, which "
            "is an ordinary one of the tokenizer: they do not belong together."
        )
