"""Synthesized emotional voices: speech-like sound without recordings.

Who speaks, which syllables, with which intonation and emotion is decided here;
``source_filter`` makes the sound of it. The voices speak nonsense syllables,
as the actors of GEMEP do (Banziger, Mortillaro & Scherer, Emotion 12, 2012):
only the *number* of syllables comes from a text, so that the words cannot be
guessed from the sound. It is a test bench for emotion recognition, not a
text-to-speech system.

How an emotion changes a voice is the table ``STYLES``. The directions are the
acoustic correlates of the reviews below; the sizes are those of acted, strong
emotion, so that a small model learns them from a few voices:

* I. R. Murray & J. L. Arnott, "Toward the simulation of emotion in synthetic
  speech", JASA 93(2), 1993, pp. 1097-1108;
* R. Banse & K. R. Scherer, "Acoustic profiles in vocal emotion expression",
  J. Pers. Soc. Psychol. 70(3), 1996, pp. 614-636;
* K. R. Scherer, "Vocal communication of emotion: a review of research
  paradigms", Speech Communication 40, 2003, pp. 227-256;
* P. N. Juslin & P. Laukka, "Communication of emotions in vocal expression and
  music performance", Psychol. Bull. 129(5), 2003, pp. 770-814.

Example
-------
>>> import numpy as np
>>> voice = draw_voice("woman", np.random.default_rng(1))
>>> speech = synthesize(voice, "happy", 9, np.random.default_rng(2))
>>> speech.dtype, 1.0 < len(speech) / SAMPLE_RATE < 4.0
(dtype('float32'), True)
"""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from recipes.demo.source_filter import (
    FRAME_RATE,
    SAMPLE_RATE,
    glottal_source,
    vocal_tract,
)

# Raise it when the same seed no longer gives the same sound.
VERSION = 1


@dataclass(frozen=True)
class VocalStyle:
    """What an emotion does to any voice; the defaults are a neutral voice."""

    pitch_st: float = 0.0  # mean pitch, semitones from the speaker's own
    range_st: float = 1.6  # height of a pitch accent, semitones
    contour_st: float = -2.0  # drift of pitch over the utterance, semitones
    level_db: float = 0.0  # vocal effort, overall
    accent_db: float = 4.0  # how far stressed syllables stand out
    rate: float = 1.0  # tempo, times the speaker's own
    tilt_db: float = 0.0  # spectral slope above 500 Hz, dB per octave
    attack_s: float = 0.04  # onset time of a syllable's energy
    jitter: float = 0.008  # irregularity of the pitch periods, fraction
    breath: float = 0.0  # aspiration noise, added to the speaker's own
    formants: float = 1.0  # formant shift; a smile shortens the vocal tract


STYLES = {
    # Higher pitch and wider range, loud, fast, strong high frequencies,
    # abrupt onsets on the stressed syllables, irregular.
    "angry": VocalStyle(
        pitch_st=3.0,
        range_st=3.0,
        contour_st=-4.0,
        level_db=9.0,
        accent_db=10.0,
        rate=1.12,
        tilt_db=7.0,
        attack_s=0.02,
        jitter=0.03,
        breath=-0.03,
    ),
    # Highest pitch and widest range, rather loud, fast, some more high
    # frequencies, rising and regular; the smile raises the formants
    # (V. C. Tartter, "Happy talk", Percept. Psychophys. 27, 1980).
    "happy": VocalStyle(
        pitch_st=6.0,
        range_st=6.0,
        contour_st=4.0,
        level_db=5.0,
        accent_db=5.0,
        rate=1.25,
        tilt_db=2.0,
        jitter=0.004,
        formants=1.14,
    ),
    "neutral": VocalStyle(),
    # Low and monotonous, falling, soft, slow, weak high frequencies, slow
    # onsets, breathy.
    "sad": VocalStyle(
        pitch_st=-2.0,
        range_st=0.5,
        contour_st=-3.5,
        level_db=-7.0,
        accent_db=2.0,
        rate=0.7,
        tilt_db=-4.5,
        attack_s=0.07,
        jitter=0.015,
        breath=0.12,
    ),
}


@dataclass(frozen=True)
class Voice:
    """What stays the same in everything that one speaker says."""

    pitch_hz: float
    formants: float  # scale against an adult man's vocal tract
    rate: float  # syllables per second
    tilt_db: float  # spectral slope above 500 Hz, dB per octave
    breath: float  # aspiration noise against the glottal flow
    level_db: float


# Mean pitch (Hz) and formant scale against a man's, after G. E. Peterson &
# H. L. Barney, "Control methods used in a study of the vowels", JASA 24, 1952.
VOICE_KINDS = {"woman": (223, 1.17), "man": (132, 1.0), "child": (264, 1.3)}

# Formants (Hz) of ten vowels, men, from the same study.
_VOWELS = np.array(
    [
        (270, 2290, 3010),  # heed
        (390, 1990, 2550),  # hid
        (530, 1840, 2480),  # head
        (660, 1720, 2410),  # had
        (730, 1090, 2440),  # hod
        (570, 840, 2410),  # hawed
        (440, 1020, 2240),  # hood
        (300, 870, 2240),  # who'd
        (640, 1190, 2390),  # hud
        (490, 1350, 1690),  # heard
    ]
)

# Consonants as a sequence of sounds, each: share of the duration, formants
# (Hz), voicing, frication, and the center of the frication noise (Hz).
_CONSONANTS = (
    ((1.0, 250, 1000, 2200, 0.35, 0.0, 1000),),  # m
    ((1.0, 250, 1500, 2500, 0.35, 0.0, 1000),),  # n
    ((1.0, 350, 1050, 2600, 0.60, 0.0, 1000),),  # l
    ((1.0, 350, 1150, 1550, 0.60, 0.0, 1000),),  # r
    ((1.0, 300, 700, 2200, 0.60, 0.0, 1000),),  # w
    ((1.0, 300, 1700, 2600, 0.0, 0.8, 5500),),  # s
    ((1.0, 300, 1800, 2500, 0.0, 0.9, 3000),),  # sh
    ((1.0, 300, 1100, 2200, 0.0, 0.3, 6500),),  # f
    ((1.0, 300, 1700, 2600, 0.3, 0.4, 5500),),  # z
    # Stops: a closure, then the burst.
    ((0.7, 250, 900, 2200, 0, 0, 1200), (0.3, 300, 900, 2200, 0, 1, 1200)),  # p
    ((0.7, 250, 1700, 2600, 0, 0, 4500), (0.3, 300, 1700, 2600, 0, 1, 4500)),
    ((0.7, 250, 1900, 2400, 0, 0, 2200), (0.3, 300, 1900, 2400, 0, 1, 2200)),
)


def draw_voice(kind, rng):
    """A new speaker: the means of a kind of voice, and individual deviations.

    Arguments
    ---------
    kind : str
        A key of ``VOICE_KINDS``: "woman", "man" or "child".
    rng : numpy.random.Generator
        Where the deviations come from.

    Returns
    -------
    Voice

    Example
    -------
    >>> voice = draw_voice("man", np.random.default_rng(0))
    >>> 110 < voice.pitch_hz < 158
    True
    """
    pitch_hz, formants = VOICE_KINDS[kind]
    return Voice(
        pitch_hz=pitch_hz * 2 ** (rng.uniform(-3, 3) / 12),
        formants=formants * rng.uniform(0.95, 1.05),
        rate=rng.uniform(5.5, 6.5),
        tilt_db=rng.uniform(-0.8, 0.8),
        breath=rng.uniform(0.04, 0.12),
        level_db=rng.uniform(-3, 3),
    )


def synthesize(voice, emotion, num_syllables, rng):
    """Speaks nonsense syllables with an emotion in the voice.

    Arguments
    ---------
    voice : Voice
        The speaker.
    emotion : str
        A key of ``STYLES``. How strongly it shows varies by utterance.
    num_syllables : int
        Length of the utterance, at least 1.
    rng : numpy.random.Generator
        Which syllables, accents and pauses, and the recording. The same state
        gives the same samples.

    Returns
    -------
    signal : numpy.ndarray
        float32 (T,) at ``SAMPLE_RATE``, within [-1, 1].
    """
    style = _at_strength(STYLES[emotion], rng.uniform(0.85, 1.2))
    tract, nuclei, stress = _articulate(voice, style, num_syllables, rng)
    pitch_hz = _intonation(voice, style, len(tract), nuclei, stress, rng)
    source = glottal_source(
        pitch_hz,
        breath=max(0.0, voice.breath + style.breath),
        shimmer=4 * style.jitter,
        rng=rng,
    )
    speech = vocal_tract(
        source, tract, voice.formants, voice.tilt_db + style.tilt_db, rng
    )
    return _record(speech, voice.level_db + style.level_db, rng)


def _at_strength(style, strength):
    """The way from a neutral voice to ``style``, walked in part or beyond."""
    neutral = asdict(VocalStyle())
    return VocalStyle(
        **{
            name: neutral[name] + strength * (value - neutral[name])
            for name, value in asdict(style).items()
        }
    )


def _articulate(voice, style, num_syllables, rng):
    """Movements of the vocal tract.

    Returns
    -------
    tract : numpy.ndarray
        (F, 6), one row each 5 ms: three formants (Hz), voicing and frication
        (amplitudes), center of the frication noise (Hz).
    nuclei : numpy.ndarray
        (num_syllables,), the middle of each vowel, in frames.
    stress : numpy.ndarray
        (num_syllables,), 1 on an accented syllable, about 0 on the others.
    """
    stress = rng.uniform(0, 0.25, num_syllables)
    # English stresses about every second or third syllable.
    accented = np.cumsum(rng.integers(2, 4, num_syllables)) - 2
    stress[accented[accented < num_syllables]] = 1
    pause_after = rng.integers(num_syllables)

    sounds, seconds, nuclei = [], [], []

    def add(duration, *sound):
        sounds.append(sound)
        seconds.append(duration)

    for i in range(num_syllables):
        syllable = rng.lognormal(0, 0.12) / (voice.rate * style.rate)
        syllable *= 0.9 + 0.25 * stress[i] + 0.3 * (i == num_syllables - 1)
        for share, *sound in _CONSONANTS[rng.integers(len(_CONSONANTS))]:
            add(0.35 * share * syllable, *sound)
        gain = 10 ** (style.accent_db * (stress[i] - 0.5) / 20)
        nuclei.append(sum(seconds) + 0.325 * syllable)
        vowel = _VOWELS[rng.integers(len(_VOWELS))]
        add(0.65 * syllable, *vowel, gain, 0, 1000)
        if i == pause_after:
            add(rng.uniform(0.05, 0.15) / style.rate, *vowel, 0, 0, 1000)

    ends = np.round(np.cumsum(seconds) * FRAME_RATE).astype(int)
    tract = np.repeat(
        np.array(sounds, dtype=float), np.diff(ends, prepend=0), axis=0
    )
    tract[:, :3] = _smooth(tract[:, :3], 0.05)  # the tongue glides
    tract[:, 3:5] = _smooth(tract[:, 3:5], style.attack_s)
    tract[:, :3] *= voice.formants * style.formants
    return tract, np.array(nuclei) * FRAME_RATE, stress


def _smooth(frames, seconds):
    """Moving average over time with a Hann window, edges held."""
    width = max(1, round(seconds * FRAME_RATE)) | 1
    padded = np.pad(frames, ((width // 2,) * 2, (0, 0)), mode="edge")
    weights = np.hanning(width + 2)[1:-1]
    windows = sliding_window_view(padded, width, axis=0)
    return windows @ (weights / weights.sum())


def _intonation(voice, style, num_frames, nuclei, stress, rng):
    """Pitch (Hz) of each frame: the drift, and an accent on each stress.

    The accents ride on the drift as in H. Fujisaki's model of intonation
    (1984); a Gaussian stands for his filtered accent command.
    """
    frames = np.arange(num_frames)
    drift = style.contour_st * (frames / num_frames - 0.5)
    height = style.range_st * stress * rng.uniform(0.7, 1.3, len(stress))
    width = 0.08 * FRAME_RATE / style.rate
    accents = np.exp(-0.5 * ((frames[:, None] - nuclei) / width) ** 2) @ height
    tremor = style.jitter * rng.standard_normal(num_frames)
    semitones = style.pitch_st + drift + accents
    return voice.pitch_hz * 2 ** (semitones / 12) * (1 + tremor)


def _record(speech, level_db, rng):
    """A recording: silence around, a microphone's gain, background noise."""
    silence = rng.integers(SAMPLE_RATE // 20, SAMPLE_RATE // 5, 2)
    signal = np.pad(speech, silence)
    # Noise falls by 3 dB an octave as in rooms. Its level follows the speech,
    # so that how loud somebody speaks cannot be read off the background.
    snr_db = rng.uniform(15, 35)
    spectrum = np.fft.rfft(rng.standard_normal(1 << len(signal).bit_length()))
    noise = np.fft.irfft(spectrum / np.sqrt(1 + np.arange(len(spectrum))))
    noise = noise[: len(signal)]
    signal = signal + noise * 10 ** (-snr_db / 20) / noise.std()
    gain_db = level_db + rng.uniform(-3, 3) - 30  # microphone distance
    signal = signal * 10 ** (gain_db / 20)
    return (signal / max(1.0, np.abs(signal).max())).astype(np.float32)
