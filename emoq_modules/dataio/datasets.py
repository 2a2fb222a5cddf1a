"""From manifests to batches: audio or stored frames, tokens and labels."""

import torch
from speechbrain.dataio.dataset import DynamicItemDataset

from emoq_modules.dataio.manifest_reader import parse_manifest
from emoq_modules.errors import CorpusError


class TextInputs:
    """Token ids of what the text encoder and the LLM read of an utterance.

    Arguments
    ---------
    tokenizer : transformers.PreTrainedTokenizerFast | None
        That of the text encoder; None if nothing reads its tokens.
    max_text_tokens : int
        A longer transcript is cut at its end, for the text encoder.
    prompt : TokenizedPrompt | None
        That of the LLM; None in stage 1.
    speaker_in_prompt : bool
        Whether the prompt tells who speaks, and who spoke before.
    context_turns : int
        Turns before an utterance that the prompt tells, at most.

    Example
    -------
    >>> TextInputs().tokens("Oh no!")
    tensor([0])
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
        """Tokenizes a transcript for the text encoder.

        Arguments
        ---------
        text : str
            What was said.

        Returns
        -------
        torch.Tensor
            Token ids, ``(L,)``, L at least 1.
        """
        if self.tokenizer is None:
            return torch.zeros(1, dtype=torch.long)
        ids = self.tokenizer(
            text, truncation=True, max_length=self.max_text_tokens
        )
        return torch.tensor(ids["input_ids"])

    def prompt_ids(self, text, speaker=None, context=()):
        """Tokenizes the prompt of an utterance for the LLM.

        Arguments
        ---------
        text : str
            What was said.
        speaker : str | None
            Who said it.
        context : list of tuple
            Speaker and text of the turns before, oldest first.

        Returns
        -------
        tuple
            What ``TokenizedPrompt.encode`` gives.
        """
        context = latest_turns(context, self.context_turns)
        if not self.speaker_in_prompt:
            speaker, context = None, [(None, said) for _, said in context]
        return self.prompt.encode(text, speaker, context)


def build_datasets(manifests, labels, audio, inputs, dialogues=None):
    """Makes SpeechBrain data sets of manifests.

    Arguments
    ---------
    manifests : dict
        Rows of each split, as ``read_manifest`` gives them.
    labels : list of str
        The emotion words, in the order of the classes.
    audio : callable | None
        Gives what ``audio`` holds from an utterance's path: its stored frames
        ``(T, audio_dim)``, or its waveform ``(T,)``. None leaves audio out.
    inputs : TextInputs
        What is read of the transcripts.
    dialogues : dict | None
        The turns of each dialogue, as ``read_dialogues`` gives them; None if
        no turn before an utterance is wanted.

    Returns
    -------
    dict
        A ``DynamicItemDataset`` for each split, whose items have ``id``,
        ``dialogue``, ``label`` (class index), ``tokens``, ``audio`` where
        there is any, and ``prompt`` where an LLM reads one.
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
    if inputs.prompt is not None:
        takes = ["text", "speaker", "dialogue", "turn"]
        items += [{"func": prompt, "takes": takes, "provides": "prompt"}]
    if audio is not None:
        items += [{"func": audio, "takes": "wav", "provides": "audio"}]
    keys = ["id", "dialogue", *(item["provides"] for item in items)]
    return {
        split: DynamicItemDataset(rows, items, keys)
        for split, rows in manifests.items()
    }


def latest_turns(turns, number):
    """Takes the last turns, not counting those without a text.

    Arguments
    ---------
    turns : list of tuple
        Speaker and text, oldest first.
    number : int
        How many, at most.

    Returns
    -------
    list of tuple
        Speaker and text of these turns, oldest first.

    Example
    -------
    >>> latest_turns([("Ross", "Hi."), ("Joey", "Hey."), ("Ross", "")], 1)
    [('Joey', 'Hey.')]
    """
    spoken = [(speaker, text) for speaker, text in turns if text]
    return spoken[max(0, len(spoken) - number) :]


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
