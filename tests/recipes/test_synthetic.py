"""The synthesized voices and the dialogues they speak."""

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from recipes.demo.dialogues import count_syllables, plan_corpus
from recipes.demo.voices import (
    SAMPLE_RATE,
    STYLES,
    VOICE_KINDS,
    draw_voice,
    synthesize,
)

EMOTIONS = ("angry", "happy", "neutral", "sad")


def rng(*seed):
    return np.random.default_rng(seed)


# --- Voices


@cache
def speak(emotion, kind="woman", syllables=14, seed=0):
    voice = draw_voice(kind, rng(seed))
    return voice, synthesize(voice, emotion, syllables, rng(seed, 1))


def pitch_hz(signal):
    """Median over frames of the autocorrelation's peak, 70 to 550 Hz."""
    frames = sliding_window_view(signal, 1024)[::400] * np.hanning(1024)
    power = np.abs(np.fft.rfft(frames, 4096)) ** 2
    correlation = np.fft.irfft(power)[:, : SAMPLE_RATE // 70]
    correlation[:, : SAMPLE_RATE // 550] = 0
    loud = correlation.max(1) > 0.1 * correlation.max()
    return SAMPLE_RATE / np.median(correlation[loud].argmax(1))


def level_db(signal):
    return 10 * np.log10(np.mean(signal**2))


def slope_db(signal):
    """Level above 500 Hz against the level below, as Banse & Scherer's."""
    power = np.abs(np.fft.rfft(signal)) ** 2
    hz = np.fft.rfftfreq(len(signal), 1 / SAMPLE_RATE)
    return 10 * np.log10(power[hz > 500].sum() / power[hz < 500].sum())


@pytest.mark.parametrize("kind", VOICE_KINDS)
def test_a_neutral_voice_speaks_near_its_own_pitch(kind):
    for seed in range(3):
        voice, signal = speak("neutral", kind, seed=seed)
        assert 0.85 < pitch_hz(signal) / voice.pitch_hz < 1.25


@pytest.mark.parametrize(
    "measure, rising",
    [
        (pitch_hz, ["sad", "neutral", "angry", "happy"]),
        (level_db, ["sad", "neutral", "happy", "angry"]),
        (slope_db, ["sad", "neutral", "happy", "angry"]),
        (len, ["happy", "angry", "neutral", "sad"]),
    ],
    ids=["pitch", "level", "slope", "duration"],
)
def test_emotions_are_ordered_as_in_the_literature(measure, rising):
    means = {
        emotion: np.mean(
            [
                measure(speak(emotion, kind, seed=seed)[1])
                for kind in VOICE_KINDS
                for seed in range(4)
            ]
        )
        for emotion in EMOTIONS
    }
    assert sorted(EMOTIONS, key=means.get) == rising


def test_speech_is_16_khz_float32_that_does_not_clip():
    for emotion in EMOTIONS:
        _, signal = speak(emotion, "child", 1)
        assert signal.dtype == np.float32 and signal.ndim == 1
        assert np.isfinite(signal).all() and np.abs(signal).max() <= 1
        assert 0.2 < len(signal) / SAMPLE_RATE < 2


def test_more_syllables_take_longer():
    short, long = (len(speak("neutral", syllables=n)[1]) for n in (5, 20))
    assert long > 2.5 * short


# --- Dialogues


@pytest.fixture(scope="module")
def plan():
    return plan_corpus(seed=1234)


def test_the_plan_is_the_one_promised(plan):
    assert len(plan.utterances) >= 400
    assert len(plan.voices) >= 12
    assert {u.emotion for u in plan.utterances} == set(EMOTIONS)
    assert set(STYLES) == set(EMOTIONS)
    for split in ("train", "valid", "test"):
        own = [u for u in plan.utterances if u.split == split]
        count = Counter(u.emotion for u in own)
        assert count["angry"] == count["happy"] == count["sad"]
        assert 0.3 < count["neutral"] / len(own) < 0.35


def test_speakers_of_a_split_speak_in_no_other(plan):
    splits = {}
    for utterance in plan.utterances:
        splits.setdefault(utterance.speaker, set()).add(utterance.split)
    assert splits.keys() == plan.voices.keys()
    assert all(len(where) == 1 for where in splits.values())


def test_two_speakers_take_turns_in_a_dialogue(plan):
    dialogues = {}
    for utterance in plan.utterances:
        dialogues.setdefault(utterance.dialogue, []).append(utterance)
    assert len(dialogues) == 72
    for turns in dialogues.values():
        assert [u.turn for u in turns] == list(range(10))
        first, second = turns[0].speaker, turns[1].speaker
        assert first != second
        assert [u.speaker for u in turns] == [first, second] * 5


def test_emotion_is_in_the_voice_in_the_words_or_rarely_in_both(plan):
    emotional = [u for u in plan.utterances if u.emotion != "neutral"]
    voice = [u for u in emotional if u.word_emotion == "neutral"]
    words = [u for u in emotional if u.voice_emotion == "neutral"]
    assert len(voice) == len(words) == round(len(emotional) * 4 / 9)
    for utterance in plan.utterances:
        shown = {utterance.voice_emotion, utterance.word_emotion}
        assert shown - {"neutral"} == {utterance.emotion} - {"neutral"}


def test_most_test_sentences_are_unseen_but_their_words_are_not(plan):
    seen = {u.text for u in plan.utterances if u.split == "train"}
    test = [u.text for u in plan.utterances if u.split == "test"]
    assert sum(text not in seen for text in test) > 0.5 * len(test)
    words = set(re.findall(r"\w+", " ".join(seen).lower()))
    assert set(re.findall(r"\w+", " ".join(test).lower())) <= words


def test_the_number_of_syllables_does_not_betray_the_words(plan):
    counts = {emotion: [] for emotion in EMOTIONS}
    for utterance in plan.utterances:
        counts[utterance.word_emotion].append(count_syllables(utterance.text))
    means = [np.mean(values) for values in counts.values()]
    assert max(means) - min(means) < 0.5  # a tenth of a second


def test_utterances_sound_the_same_in_any_order():
    plans = [plan_corpus(3, 6, 3, 2), plan_corpus(3, 6, 3, 2)]
    assert plans[0] == plans[1]
    forwards = [plans[0].speak(u) for u in plans[0].utterances]
    backwards = [plans[1].speak(u) for u in reversed(plans[1].utterances)]
    for one, other in zip(forwards, reversed(backwards), strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_seed_gives_other_voices_words_and_sound():
    one, other = plan_corpus(1, 6, 3, 4), plan_corpus(2, 6, 3, 4)
    assert not set(one.voices.values()) & set(other.voices.values())
    texts = [{u.text for u in plan.utterances} for plan in (one, other)]
    assert texts[0] != texts[1]
    first = [plan.speak(plan.utterances[0]) for plan in (one, other)]
    assert not np.array_equal(*first)


# --- Neither modality alone suffices


def log_mel_statistics(signal, num_mels=80):
    """Mean, deviation and movement of a log-mel spectrogram, (240,)."""
    frames = sliding_window_view(signal, 400)[::320] * np.hamming(400)
    power = np.abs(np.fft.rfft(frames, 512)) ** 2
    mels = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), num_mels + 2)
    low, center, high = sliding_window_view(
        700 * (10 ** (mels / 2595) - 1) * 512 / SAMPLE_RATE, 3
    ).T
    bins = np.arange(257)[:, None]
    rising, falling = (
        (bins - low) / (center - low),
        (high - bins) / (high - center),
    )
    filters = np.maximum(0, np.minimum(rising, falling))
    mel = np.log(power @ filters + 1e-6)
    movement = np.diff(mel, axis=0)
    return np.hstack([mel.mean(0), mel.std(0), movement.std(0)])


@pytest.fixture(scope="module")
def modalities():
    """Features of a corpus a little smaller than the demo's, and labels."""
    plan = plan_corpus(seed=1234, num_dialogues=48)
    train = np.array([u.split == "train" for u in plan.utterances])
    texts = np.array([u.text for u in plan.utterances])
    sound = np.array(
        [log_mel_statistics(plan.speak(u)) for u in plan.utterances]
    )
    sound = StandardScaler().fit(sound[train]).transform(sound)
    words = CountVectorizer(token_pattern=r"\w+").fit(texts[train])
    return {
        "train": train,
        "plan": plan,
        # Both have about the same norm, so that one kernel sees them alike.
        "sound": sound / np.sqrt(sound.shape[1]),
        "words": words.transform(texts).toarray() / 4,
    }


def unweighted_accuracy(modalities, features, labels, rows=True):
    """UA (%) on speakers never heard, of a support vector machine."""
    train = modalities["train"]
    machine = SVC(C=100, gamma=0.1, class_weight="balanced")
    machine.fit(features[train & rows], labels[train & rows])
    guess = machine.predict(features[~train & rows])
    return 100 * balanced_accuracy_score(labels[~train & rows], guess)


def test_both_modalities_together_are_needed_and_suffice(modalities):
    sound, words = modalities["sound"], modalities["words"]
    labels = np.array([u.emotion for u in modalities["plan"].utterances])
    audio = unweighted_accuracy(modalities, sound, labels)
    text = unweighted_accuracy(modalities, words, labels)
    both = unweighted_accuracy(modalities, np.hstack([sound, words]), labels)
    print(f"UA: audio {audio:.1f}, text {text:.1f}, both {both:.1f}")
    assert both >= 85
    assert both - max(audio, text) >= 8


def test_the_sound_does_not_tell_the_emotion_of_the_words(modalities):
    utterances = modalities["plan"].utterances
    calm = np.array([u.voice_emotion == "neutral" for u in utterances])
    labels = np.array([u.word_emotion for u in utterances])
    accuracy = unweighted_accuracy(
        modalities, modalities["sound"], labels, rows=calm
    )
    assert accuracy < 25 + 12  # chance is 25; 124 utterances


def test_the_words_do_not_tell_the_emotion_of_the_voice(modalities):
    utterances = modalities["plan"].utterances
    plain = np.array([u.word_emotion == "neutral" for u in utterances])
    labels = np.array([u.voice_emotion for u in utterances])
    accuracy = unweighted_accuracy(
        modalities, modalities["words"], labels, rows=plain
    )
    assert accuracy < 25 + 12
