"""The demo corpus before it sounds: who says what to whom, and how.

Dialogues of two speakers in which an emotion shows in the voice of some
utterances and in the words of others, so that a recognizer needs both. What
an utterance says depends on its words' emotion only, how it sounds on its
voice's emotion and on its number of syllables: neither modality knows anything
of what the other one carries. Speakers of a split speak in no other.

Example
-------
>>> plan = plan_corpus(seed=1, num_speakers=12, num_dialogues=6, num_turns=2)
>>> first = plan.utterances[0]
>>> first.id, first.split, first.speaker, first.turn
('s00d00t00', 'train', 'woman00', 0)
>>> plan.speak(first).dtype
dtype('float32')
"""

import re
from dataclasses import dataclass

import numpy as np

from recipes.demo.voices import Voice, draw_voice, synthesize

# One deal of forty cards: (emotion of the voice, emotion of the words). An
# emotion shows in the voice four times, in the words four times, in both once.
_DECK = [("neutral", "neutral")] * 13
for _emotion in ("angry", "happy", "sad"):
    _DECK += [(_emotion, "neutral")] * 4 + [("neutral", _emotion)] * 4
    _DECK += [(_emotion, _emotion)]

# The two speakers of a session; sessions take turns.
_CASTS = (("woman", "man"), ("child", "man"))

_TOPICS = (
    "the trip",
    "the meeting",
    "the exam",
    "the party",
    "the phone call",
    "the dinner",
    "the concert",
    "the wedding",
    "the lesson",
    "the interview",
)

_OPENINGS = ("", "", "", "Well, ", "Look, ", "Listen, ", "So, ")

# What can be said of a topic, by emotion. An emotional word comes back in
# another context among the remarks. All emotions' phrases have about the same
# number of syllables, or the duration would betray the words.
_CLAUSES = {
    "angry": (
        "I am furious about {}",
        "{} makes me so angry",
        "{} is driving me mad",
        "I hate what they did to {}",
        "I am so fed up with {}",
        "{} is really outrageous",
        "they were unfair about {}",
        "{} is an utter disgrace",
    ),
    "happy": (
        "I am delighted with {}",
        "{} is simply wonderful",
        "I really do love {}",
        "I am so happy about {}",
        "we are thrilled with {}",
        "{} was fantastic for us",
        "I am so glad about {}",
        "{} has made us all smile",
    ),
    "neutral": (
        "I am writing about {}",
        "{} is on a Tuesday",
        "I read the notes about {}",
        "they have moved {} to Monday",
        "{} takes about an hour",
        "I put {} on the list",
        "{} begins at half past nine",
        "somebody asked about {}",
        "there are two dates for {}",
        "we need a number for {}",
    ),
    "sad": (
        "I am heartbroken over {}",
        "{} makes me want to cry",
        "I feel so sad about {}",
        "there is no hope for {}",
        "{} has left me in tears",
        "{} has been miserable",
        "it hurts to think of {}",
        "we are lonely after {}",
    ),
}

# What can be said of anything.
_REMARKS = {
    "angry": (
        "it makes me furious",
        "I am angry with them all",
        "I am mad at all of them",
        "I hate the way they talk",
        "we are fed up with it",
        "this is outrageous",
        "that is totally unfair",
        "what a disgrace it is",
    ),
    "happy": (
        "we are all delighted",
        "it is a wonderful day",
        "I love it so much",
        "it makes me so happy",
        "everyone is thrilled",
        "this is just fantastic",
        "we are glad we came along",
        "it makes me smile again",
    ),
    "neutral": (
        "it is on the second floor",
        "the bus leaves at seven",
        "I will send the details",
        "a copy is on the desk",
        "we can check it later",
        "the form is on the table",
        "it is the door on the left",
        "they will call us back",
        "I wrote down the address",
        "that is what the note says",
    ),
    "sad": (
        "it left me heartbroken",
        "I just want to cry",
        "it is a sad day for me",
        "there is no hope any more",
        "I was in tears all night",
        "we are miserable",
        "it hurts so very much",
        "I feel so lonely now",
    ),
}


@dataclass(frozen=True)
class PlannedUtterance:
    """One turn of a dialogue; ``emotion`` is what voice or words show."""

    id: str
    split: str
    speaker: str
    session: str
    dialogue: str
    turn: int
    text: str
    voice_emotion: str
    word_emotion: str
    index: int  # place in the corpus, seeds the sound

    @property
    def emotion(self):
        if self.voice_emotion == "neutral":
            return self.word_emotion
        return self.voice_emotion


@dataclass(frozen=True)
class CorpusPlan:
    """A whole corpus; its sound is computed utterance by utterance."""

    seed: int
    voices: dict[str, Voice]
    utterances: tuple[PlannedUtterance, ...]

    def speak(self, utterance):
        """The sound of an utterance, float32 (T,) at 16 kHz.

        It depends on nothing but the plan and the utterance, so that
        utterances can be spoken in any order and by several workers.
        """
        return synthesize(
            self.voices[utterance.speaker],
            utterance.voice_emotion,
            count_syllables(utterance.text),
            _generator(self.seed, "sound", utterance.index),
        )


def plan_corpus(seed, num_speakers=24, num_dialogues=72, num_turns=10):
    """Plans a corpus of ``num_dialogues * num_turns`` utterances.

    Each session has two speakers of its own, as in IEMOCAP; a sixth of the
    sessions is for validation and a sixth for testing. Forty turns of a split
    hold 13 neutral utterances and 9 of each other emotion.

    Arguments
    ---------
    seed : int
        Not negative. The same seed and sizes give the same plan.
    num_speakers : int
        Even, at least 6.
    num_dialogues : int
        At least one for each two speakers.
    num_turns : int
        Turns of a dialogue, at least 1.

    Returns
    -------
    CorpusPlan

    Raises
    ------
    ValueError
        For sizes of which no corpus with three splits can be made.
    """
    num_sessions = num_speakers // 2
    if num_speakers < 6 or num_speakers % 2:
        raise ValueError(
            f"num_speakers is {num_speakers}; it must be even and at least 6 "
            "(a pair of voices for each of training, validation and test)"
        )
    if num_dialogues < num_sessions or num_turns < 1 or seed < 0:
        raise ValueError(
            f"num_dialogues is {num_dialogues}, num_turns {num_turns}, seed "
            f"{seed}; {num_speakers} speakers need at least {num_sessions} "
            "dialogues of at least one turn, and a seed that is not negative"
        )
    speakers = [
        f"{_CASTS[i // 2 % len(_CASTS)][i % 2]}{i:02d}"
        for i in range(num_speakers)
    ]
    voices = {
        speaker: draw_voice(speaker[:-2], _generator(seed, "voice", i))
        for i, speaker in enumerate(speakers)
    }
    decks = {
        split: _deal(_generator(seed, "deck", i))
        for i, split in enumerate(("train", "valid", "test"))
    }
    utterances = []
    for d in range(num_dialogues):
        session = d % num_sessions
        split = _split_of(session, num_sessions)
        dialogue = f"s{session:02d}d{d // num_sessions:02d}"
        words = _generator(seed, "words", d)
        topic = words.choice(_TOPICS)
        for turn in range(num_turns):
            voice_emotion, word_emotion = next(decks[split])
            utterances.append(
                PlannedUtterance(
                    id=f"{dialogue}t{turn:02d}",
                    split=split,
                    speaker=speakers[2 * session + turn % 2],
                    session=f"s{session:02d}",
                    dialogue=dialogue,
                    turn=turn,
                    text=compose(word_emotion, topic, words),
                    voice_emotion=voice_emotion,
                    word_emotion=word_emotion,
                    index=len(utterances),
                )
            )
    return CorpusPlan(seed, voices, tuple(utterances))


def compose(emotion, topic, rng):
    """One utterance about a topic, in words that show an emotion.

    It is a clause about the topic and a remark. Words of an emotion may fill
    both, or only one beside a neutral other one.

    Example
    -------
    >>> compose("neutral", "the trip", np.random.default_rng(2))
    'I read the notes about the trip, the bus leaves at seven.'
    """
    where = rng.integers(12)  # 0: in the clause only, 1: in the remark only
    clauses = _CLAUSES["neutral" if where == 1 else emotion]
    remarks = _REMARKS["neutral" if where == 0 else emotion]
    parts = [rng.choice(clauses).format(topic), rng.choice(remarks)]
    if rng.integers(2):
        parts.reverse()
    text = f"{rng.choice(_OPENINGS)}{parts[0]}, {parts[1]}."
    return text[0].upper() + text[1:]


def count_syllables(text):
    """Syllables of English text, by its groups of vowel letters.

    Example
    -------
    >>> count_syllables("I feel so sad about the meeting.")
    9
    """
    words = re.findall(r"[a-z]+", text.lower())
    return max(1, sum(_syllables_of_word(word) for word in words))


def _syllables_of_word(word):
    groups = len(re.findall(r"[aeiouy]+", word))
    silent_e = re.search(r"[^aeiouy]e[sd]?$", word) and not re.search(
        r"([^aeiouy]le[sd]?|[td]ed)$", word
    )
    return max(1, groups - bool(silent_e))


def _split_of(session, num_sessions):
    held_out = max(1, round(num_sessions / 6))
    if session < num_sessions - 2 * held_out:
        return "train"
    return "valid" if session < num_sessions - held_out else "test"


def _deal(rng):
    """Endless cards, each deck shuffled anew."""
    while True:
        for i in rng.permutation(len(_DECK)):
            yield _DECK[i]


def _generator(seed, purpose, index):
    """Independent random numbers for each purpose and item of a corpus."""
    return np.random.default_rng([seed, *purpose.encode(), index])
