"""From manifests to batches: audio or stored frames, tokens and labels."""

import torch
from speechbrain.dataio.dataset import DynamicItemDataset

from emoq_modules.dataio.manifest_reader import parse_manifest
from emoq_modules.errors import CorpusError


def build_datasets(
    manifests,
    labels,
    audio,
    tokenizer,
    max_text_tokens=256,
    dialogues=None,
    context_turns=0,
):
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
    tokenizer : transformers.PreTrainedTokenizerFast | None
        That of the text encoder; None if nothing reads the tokens.
    max_text_tokens : int
        A longer transcript is cut at its end.
    dialogues : dict | None
        The turns of each dialogue, as ``read_dialogues`` gives them; None if
        no turn before an utterance is wanted.
    context_turns : int
        How many turns before an utterance are wanted, at most.

    Returns
    -------
    dict
        A ``DynamicItemDataset`` for each split, whose items have ``id``,
        ``text``, ``speaker``, ``dialogue``, ``label`` (class index),
        ``audio``, ``tokens`` and ``context``: speaker and text of the turns
        before, oldest first.
    """

    def tokens(text):
        """What the text encoder reads of a transcript."""
        return encode_text(tokenizer, text, max_text_tokens)

    def context(dialogue, turn):
        """The turns of a dialogue before this one."""
        if not context_turns:
            return []
        before = [
            (other.speaker, other.text)
            for other in dialogues[dialogue]
            if other.turn < turn
        ]
        return latest_turns(before, context_turns)

    items = [
        {"func": labels.index, "takes": "emotion", "provides": "label"},
        {"func": tokens, "takes": "text", "provides": "tokens"},
        {
            "func": context,
            "takes": ["dialogue", "turn"],
            "provides": "context",
        },
    ]
    if audio is not None:
        items += [{"func": audio, "takes": "wav", "provides": "audio"}]
    provided = [item["provides"] for item in items]
    keys = ["id", "text", "speaker", "dialogue", *provided]
    return {
        split: DynamicItemDataset(rows, items, keys)
        for split, rows in manifests.items()
    }


def encode_text(tokenizer, text, max_text_tokens):
    """Tokenizes a transcript for the text encoder.

    Arguments
    ---------
    tokenizer : transformers.PreTrainedTokenizerFast | None
        None if nothing reads the tokens.
    text : str
        What was said.
    max_text_tokens : int
        Where longer texts are cut.

    Returns
    -------
    torch.Tensor
        Token ids, ``(L,)``, L at least 1.
    """
    if tokenizer is None:
        return torch.zeros(1, dtype=torch.long)
    ids = tokenizer(text, truncation=True, max_length=max_text_tokens)
    return torch.tensor(ids["input_ids"])


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
