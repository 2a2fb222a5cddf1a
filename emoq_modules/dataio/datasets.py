"""From manifests to batches: audio or stored frames, tokens and labels."""

from functools import partial

import torch
from speechbrain.dataio.dataset import DynamicItemDataset

from emoq_modules.dataio.manifest_reader import parse_manifest
from emoq_modules.errors import CorpusError


class TextInputs:
    """Token ids of what the text encoder and the LLM read of an utterance.

    Without a tokenizer nothing reads tokens, without a ``TokenizedPrompt`` no
    LLM a prompt. The prompt tells at most ``context_turns`` turns before.
    """

    def __init__(
        self,
        tokenizer=None,
        max_text_tokens=256,
        prompt=None,
        speaker_in_prompt=True,
        context_turns=0,
    ):
        self.tokenizer = tokenizer
        self.max_text_tokens = max_text_tokens
        self.prompt = prompt
        self.speaker_in_prompt = speaker_in_prompt
        self.context_turns = context_turns

    def tokens(self, text):
        """Token ids of a transcript, ``(L,)``, L at least 1; cut at its end."""
        if self.tokenizer is None:
            return torch.zeros(1, dtype=torch.long)
        ids = self.tokenizer(
            text, truncation=True, max_length=self.max_text_tokens
        )
        return torch.tensor(ids["input_ids"])

    def prompt_ids(self, text, speaker=None, context=()):
        """What ``TokenizedPrompt.encode`` gives for an utterance.

        ``context`` is speaker and text of the turns before, oldest first: the
        last ``context_turns`` that have a text are told.
        """
        context = [turn for turn in context if turn[1]]
        context = context[max(0, len(context) - self.context_turns) :]
        if not self.speaker_in_prompt:
            speaker, context = None, [(None, said) for _, said in context]
        return self.prompt.encode(text, speaker, context)


def build_datasets(
    manifests, labels, audio, inputs, dialogues=None, untold=False
):
    """Makes a ``DynamicItemDataset`` of the rows of each split.

    All items have ``id``, ``dialogue``, ``label`` (class index) and ``tokens``.
    ``audio`` is a function from an utterance's path to its stored frames
    ``(T, audio_dim)`` or its waveform ``(T,)``, which the item ``audio`` holds;
    with None there is no such item. There is an item ``prompt`` where
    ``inputs``, a ``TextInputs``, has a prompt. ``dialogues`` hold the turns
    before an utterance, if they are wanted. With ``untold`` there are also the
    tokens and the prompt of each without its transcript, ``untold_tokens`` and
    ``untold_prompt``.
    """

    def prompt(text, speaker, dialogue, turn):
        """Token ids of the prompt, with the turns before this one."""
        before = [
            (other.speaker, other.text)
            for other in (dialogues or {}).get(dialogue, ())
            if other.turn < turn
        ]
        return inputs.prompt_ids(text, speaker, before)

    items = [
        {"func": labels.index, "takes": "emotion", "provides": "label"},
        {"func": inputs.tokens, "takes": "text", "provides": "tokens"},
    ]
    places = ["speaker", "dialogue", "turn"]
    if inputs.prompt is not None:
        takes = ["text", *places]
        items += [{"func": prompt, "takes": takes, "provides": "prompt"}]
    if untold:
        nothing = partial(inputs.tokens, "")
        items += [{"func": nothing, "takes": [], "provides": "untold_tokens"}]
    if untold and inputs.prompt is not None:
        without = partial(prompt, "")
        items += [
            {"func": without, "takes": places, "provides": "untold_prompt"}
        ]
    if audio is not None:
        items += [{"func": audio, "takes": "wav", "provides": "audio"}]
    keys = ["id", "dialogue", *(item["provides"] for item in items)]
    return {
        split: DynamicItemDataset(rows, items, keys)
        for split, rows in manifests.items()
    }


def training_labels(manifest, labels):
    """Class index of every utterance in a manifest, for class weights.

    Arguments
    ---------
    manifest : str
        A ``train.json``.
    labels : list of str
        The emotion words, in the order of the classes.

    Returns
    -------
    list of int
        In the order of the manifest.

    Raises
    ------
    CorpusError
        If the manifest is missing or faulty, or an utterance's emotion is not
        among the labels.
    """
    emotions = [row.emotion for row in parse_manifest(manifest).values()]
    unknown = sorted(set(emotions) - set(labels))
    if unknown:
        raise CorpusError(
            f"{manifest} holds {unknown[0]!r}, which is not one of the labels "
            f"{', '.join(labels)}: prepare the corpus with these labels."
        )
    return [labels.index(emotion) for emotion in emotions]
