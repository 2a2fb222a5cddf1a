"""The prompt: a chat with places for the speaker, the words and the voice.

A transcript is data. Only the template is read for special tokens, and each
field is tokenized on its own, as plain text on one line: whatever it holds, the
token ids of the template around it stay the same, and no turn of what was said
before can pass for the transcript or the speaker.
"""

from itertools import combinations
from os.path import commonprefix

from emoq_modules.lobes.chat import Chat, choose_words

_AUDIO = "<AUDIO>"
# Characters for private use stand for the fields while the chat template is
# applied; no tokenizer's template holds them.
_CONTEXT = "{context}"
_PLACES = {
    "{speaker}": "\ue000",
    "{text}": "\ue001",
    _AUDIO: "\ue002",
    _CONTEXT: "\ue003",
}
# No token of any vocabulary begins or ends with this one and goes on.
_ANCHOR = "\ue004"
_BETWEEN_TURNS = " | "


class PromptTemplate:
    """A chat with places for the words, the speaker, the context and the audio.

    Arguments
    ---------
    system : str
        The system turn. ``{labels}`` is replaced by the emotion words.
    user : str
        The user turn, with ``{context}``, ``{speaker}``, ``{text}`` and
        ``<AUDIO>`` where they belong, each at most once. A line whose field is
        not known for an utterance is left out; a template without ``<AUDIO>``
        has no soft prompt.
    answer : str
        What the assistant's turn begins with; the emotion word follows.
    max_text_tokens : int
        A longer transcript is cut at its end; the template never is.
    max_speaker_tokens : int
        Likewise for the speaker's name.
    max_context_tokens : int
        Longer turns before the utterance are cut at their beginning: the
        oldest are left out first.

    Raises
    ------
    ValueError
        If the user turn holds a field more than once, or another field on the
        line of ``<AUDIO>``.

    Example
    -------
    >>> user = "Speaker: {speaker}\\nTranscript: {text}\\nVoice: <AUDIO>"
    >>> PromptTemplate("Name the emotion: {labels}.", user).has_audio
    True
    """

    def __init__(
        self,
        system,
        user,
        answer="Emotion:",
        max_text_tokens=256,
        max_speaker_tokens=16,
        max_context_tokens=256,
    ):
        for place in _PLACES:
            if user.count(place) > 1:
                raise ValueError(
                    f"The user turn of the prompt holds {place} more than once."
                )
        for line in user.splitlines():
            fields = [place for place in _PLACES if place in line]
            if _AUDIO in fields and len(fields) > 1:
                raise ValueError(
                    f"The line {line!r} of the prompt's user turn would be "
                    f"left out, with {_AUDIO}, where {fields[0]} is not known: "
                    f"give {_AUDIO} a line of its own."
                )
        self.system = system
        self.user = user
        self.answer = answer
        self.max_tokens = {
            "{text}": max_text_tokens,
            "{speaker}": max_speaker_tokens,
            _CONTEXT: max_context_tokens,
        }
        self.has_audio = _AUDIO in user
        self.has_context = _CONTEXT in user

    def bind(self, tokenizer, labels, **options):
        """Makes of this template the prompt of one LLM.

        Arguments
        ---------
        tokenizer : transformers.PreTrainedTokenizerFast
            The LLM's tokenizer.
        labels : list of str
            The classes, in their order.
        **options : dict
            Further arguments of ``TokenizedPrompt``.

        Returns
        -------
        TokenizedPrompt
            The prompt in token ids.
        """
        return TokenizedPrompt(self, tokenizer, labels, **options)


class TokenizedPrompt:
    """A prompt template in the token ids of one LLM.

    Attributes: ``words``, what the LLM says for each class; ``label_ids``, the
    token ids of each word, with the space before it; ``eos_id``, the token that
    ends the assistant's turn; ``prefix_ids``, those that every prompt begins
    with, and goes on after.

    Arguments
    ---------
    template : PromptTemplate
        What to say.
    tokenizer : transformers.PreTrainedTokenizerFast
        The LLM's tokenizer. Its chat template is used; one without gets the
        turns as paragraphs.
    labels : list of str
        The classes, in their order.
    words : dict | None
        What the LLM says for a label where it is not the label itself, for
        instance ``{"sad": "sadness"}``.
    **chat_template_options : dict
        What else the chat template takes, such as ``enable_thinking``.

    Raises
    ------
    ValueError
        If an emotion word occurs twice or is no label's, the chat template
        loses a line or opens a thought, or the tokenizer is not one of the
        library ``tokenizers`` or names no end of a turn.
    """

    def __init__(
        self, template, tokenizer, labels, words=None, **chat_template_options
    ):
        self.template = template
        self.tokenizer = tokenizer
        self.labels = list(labels)
        self._chat = Chat(tokenizer, **chat_template_options)
        self.words = choose_words(labels, words)
        self._chat.check(self._system, template.user, template.answer)
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise ValueError(
                f"The LLM's tokenizer is a {type(tokenizer).__name__}, whose "
                "parts are not to be had: choose an LLM with tokenizer.json."
            )
        self._anchor_ids = self._model_ids(_ANCHOR)
        self.label_ids = [self._plain_ids(f" {word}") for word in self.words]
        self.eos_id = self._end_of_turn()
        self._pieces = {}
        fields = tuple(template.max_tokens)
        firsts = [
            self._template_pieces(known)[0]
            for number in range(len(fields) + 1)
            for known in combinations(fields, number)
        ]
        # Without the last: a template without fields is all in its first piece.
        self.prefix_ids = commonprefix(firsts)[:-1]

    @property
    def labels_are_single_tokens(self):
        """Whether each word is one token, and no two the same."""
        return len({tuple(word) for word in self.label_ids}) == len(
            self.label_ids
        ) and all(len(word) == 1 for word in self.label_ids)

    def check(self):
        """Refuses a chat template that begins an answer otherwise.

        Raises
        ------
        ValueError
            As of ``Chat.check``.
        """
        template = self.template
        self._chat.check(
            self._system, template.user, template.answer, begins=True
        )

    def encode(self, text=None, speaker=None, context=()):
        """Tokenizes the prompt of one utterance.

        Arguments
        ---------
        text : str | None
            The transcript; None or empty where there is none.
        speaker : str | None
            The speaker's name, likewise.
        context : list of tuple
            Speaker and text, likewise, of the turns before, oldest first; a
            ``ValueError`` if the template has no place for them.

        Returns
        -------
        before : list of int
            Token ids before the soft prompt.
        after : list of int
            Token ids after it; empty if the template has no ``<AUDIO>``.
        """
        values = {
            "{text}": _one_line(text),
            "{speaker}": _one_line(speaker),
            _CONTEXT: _dialogue_line(context),
        }
        if values[_CONTEXT] and not self.template.has_context:
            raise ValueError(
                f"There are turns before, but no {_CONTEXT} in the user turn "
                f"of the prompt, {self.template.user!r}."
            )
        known = tuple(place for place, value in values.items() if value)
        before, after = [], []
        ids = before
        for piece in self._template_pieces(known):
            if piece == _AUDIO:
                ids = after
            elif isinstance(piece, tuple):
                place, space = piece
                field = self._plain_ids(space + values[place])
                excess = max(0, len(field) - self.template.max_tokens[place])
                if place == _CONTEXT:  # what was said last counts most
                    ids += field[excess:]
                else:
                    ids += field[: len(field) - excess]
            else:
                ids += piece
        return before, after

    def encode_batch(self, texts, speakers=None, contexts=None):
        """Tokenizes the prompts of a batch.

        Arguments
        ---------
        texts : list of str
            The transcripts.
        speakers : list of str | None
            The speakers' names, where they are known.
        contexts : list of list of tuple | None
            The turns before each.

        Returns
        -------
        list of tuple
            What ``encode`` gives for each utterance.
        """
        speakers = speakers or [None] * len(texts)
        contexts = contexts or [()] * len(texts)
        return list(map(self.encode, texts, speakers, contexts))

    def as_text(self, ids):
        """The prompt as the LLM reads it, with ``<AUDIO>`` for the voice.

        Arguments
        ---------
        ids : tuple of list of int
            What ``encode`` gives.

        Returns
        -------
        str
            Its text, with the tokens of the chat template.
        """
        before, after = map(self.tokenizer.decode, ids)
        return f"{before}{_AUDIO * self.template.has_audio}{after}"

    def _template_pieces(self, known):
        """The template cut at its fields, for utterances with these known.

        A piece is the token ids of literal text, ``<AUDIO>``, or a field with
        the space before it: BPE joins a space to the word that follows.
        """
        if known not in self._pieces:
            places = {mark: place for place, mark in _PLACES.items()}
            pieces, literal = [], ""
            for character in self._render(known):
                if character not in places:
                    literal += character
                    continue
                space = " " if literal.endswith(" ") else ""
                text = literal.removesuffix(" ")
                pieces.append(self._template_ids(text, bool(pieces)))
                place = places[character]
                pieces.append(_AUDIO if place == _AUDIO else (place, space))
                literal = ""
            pieces.append(self._template_ids(literal, bool(pieces)))
            self._pieces[known] = pieces
        return self._pieces[known]

    def _render(self, known):
        fields = [place for place in _PLACES if place != _AUDIO]
        lines = [
            line
            for line in self.template.user.splitlines()
            if all(place in known or place not in line for place in fields)
        ]
        user = "\n".join(lines)
        for place, mark in _PLACES.items():
            user = user.replace(place, mark)
        return self._chat.render(self._system, user) + self.template.answer

    @property
    def _system(self):
        return self.template.system.format(labels=", ".join(self.words))

    def _end_of_turn(self):
        """What the chat template closes a turn with, or else eos_token."""
        closing = self._chat.closing()
        if closing:
            return self._template_ids(closing, is_within=True)[0]
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                "The LLM's tokenizer names no end-of-turn token (eos_token); "
                "its folder lacks tokenizer_config.json, perhaps."
            )
        return self.tokenizer.eos_token_id

    def _template_ids(self, text, is_within):
        """Token ids of what the template says, at its beginning or later."""

        def ids(text):
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]

        return self._in_place(text, ids) if is_within else ids(text)

    def _plain_ids(self, text):
        """Token ids of ``text`` with no added token recognized in it."""
        return self._in_place(text, self._model_ids)

    def _in_place(self, text, ids):
        """Token ids as in the middle of a text.

        At its beginning some tokenizers put a space, or ``▁`` for it.
        """
        found, before = ids(_ANCHOR + text), self._anchor_ids
        if found[: len(before)] == before:
            return found[len(before) :]
        return ids(text)  # joined with what is before

    def _model_ids(self, text):
        """Token ids by the model behind the tokenizer, which adds none.

        ``split_special_tokens`` would still recognize added tokens that are
        not special, such as Qwen2.5's <tool_call>; the model knows none.
        """
        backend = self.tokenizer.backend_tokenizer
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        pieces = [text]
        if backend.pre_tokenizer is not None:
            pieces = [
                piece
                for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)
            ]
        return [
            token.id
            for piece in pieces
            for token in backend.model.tokenize(piece)
        ]


def _dialogue_line(context):
    """Turns with a text, as ``Ross: Oh no. | Rachel: What?``."""
    turns = [(_one_line(speaker), _one_line(text)) for speaker, text in context]
    return _BETWEEN_TURNS.join(
        f"{speaker}: {text}" if speaker else text
        for speaker, text in turns
        if text
    )


def _one_line(value):
    """A field's value on one line: a newline could pass for a new field."""
    return " ".join((value or "").split())
