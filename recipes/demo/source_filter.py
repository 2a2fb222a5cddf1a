"""Source-filter synthesis of speech: a glottal source and a vocal tract.

The model of G. Fant, "Acoustic Theory of Speech Production" (1960), with the
cascade of resonators of D. H. Klatt, "Software for a cascade/parallel formant
synthesizer", JASA 67 (1980), as filters that change from frame to frame of a
short-time Fourier transform, so that a whole utterance is a few array
operations.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SAMPLE_RATE = 16000
_HOP = 80  # samples
FRAME_RATE = SAMPLE_RATE // _HOP  # frames a second

# A Hann window of four hops overlaps to a constant; the transform is two hops
# longer, room for the ringing of the formants.
_WINDOW = 4 * _HOP
_TRANSFORM = 6 * _HOP
_HANN = np.hanning(_WINDOW + 1)[:-1] / 2
_BIN_HZ = np.fft.rfftfreq(_TRANSFORM, 1 / SAMPLE_RATE)

# Resonances above the third hardly move: those of a uniform tube of 17.5 cm.
_HIGHER_FORMANTS = (3500.0, 4500.0, 5500.0)


def glottal_source(pitch_hz, breath, shimmer, rng):
    """Sound at the vocal folds: pulses and aspiration noise.

    The pulse is the flow derivative of KLGLOTT88 (D. H. Klatt & L. C. Klatt,
    "Analysis, synthesis, and perception of voice quality variations among
    female and male talkers", JASA 87, 1990).

    Arguments
    ---------
    pitch_hz : numpy.ndarray
        (F,), fundamental frequency of each frame.
    breath : float
        Level of the aspiration noise, 0 to about 0.4. It also opens the folds
        for a larger part of each period.
    shimmer : float
        Standard deviation of the pulses' amplitude, a fraction.
    rng : numpy.random.Generator

    Returns
    -------
    source : numpy.ndarray
        (F * SAMPLE_RATE / FRAME_RATE,).

    Example
    -------
    >>> pitch_hz = np.full(200, 120.0)
    >>> glottal_source(pitch_hz, 0.1, 0.0, np.random.default_rng(0)).shape
    (16000,)
    """
    frames = np.arange(len(pitch_hz))
    pitch_hz = np.interp(
        np.arange(len(pitch_hz) * _HOP) / _HOP, frames, pitch_hz
    )
    cycle, phase = np.divmod(np.cumsum(pitch_hz / SAMPLE_RATE), 1.0)
    cycle = cycle.astype(int)
    x = np.minimum(phase / (0.5 + breath), 1.0)
    flow = 6.75 * (x**2 - x**3)
    flow *= 1 + shimmer * rng.standard_normal(cycle[-1] + 1)[cycle]
    # The slope of the flow grows with pitch; the loudness should not.
    pulses = np.diff(flow, prepend=0.0) * 0.1 * SAMPLE_RATE / pitch_hz
    aspiration = rng.standard_normal(len(flow)) * (0.3 + flow)
    return pulses + 0.3 * breath * aspiration


def vocal_tract(source, tract, formant_scale, tilt_db, rng):
    """Shapes the source into speech, frame by frame.

    Arguments
    ---------
    source : numpy.ndarray
        (T,), from ``glottal_source``.
    tract : numpy.ndarray
        (F, 6), the movements: three formants (Hz), amplitudes of voicing and
        of frication, center of the frication noise (Hz).
    formant_scale : float
        Places the formants above the third; 1 is an adult man.
    tilt_db : float
        Spectral slope of the voicing above 125 Hz, dB per octave.
    rng : numpy.random.Generator
        Makes the frication noise.

    Returns
    -------
    speech : numpy.ndarray
        (T + the last frame's ringing,), of unit root mean square.
    """
    formants, (voicing, frication, center) = tract[:, :3], tract[:, 3:].T
    higher = np.multiply.outer(np.ones(len(tract)), _HIGHER_FORMANTS)
    formants = np.hstack([formants, higher * formant_scale])

    octaves = np.log2(np.maximum(_BIN_HZ, 125.0) / 500.0)
    voiced = _spectra(source) * _resonances(formants)
    voiced *= voicing[:, None] * 10 ** (tilt_db * octaves / 20)

    distance = (_BIN_HZ - center[:, None]) / (0.35 * center[:, None])
    noise = _spectra(rng.standard_normal(len(source)))
    noise *= 0.3 * frication[:, None] * np.exp(-0.5 * distance**2)

    speech = _overlap_add(voiced + noise)
    return speech / np.sqrt(np.mean(speech**2))


def _resonances(hz):
    """Transfer function of a cascade of resonators, complex (F, bins).

    Each is a pair of poles with unit gain at 0 Hz and a bandwidth that grows
    with frequency; the cascade's denominator is the product of theirs.
    """
    radius = np.exp(-np.pi * (50 + 0.05 * hz) / SAMPLE_RATE)
    linear = -2 * radius * np.cos(2 * np.pi * hz / SAMPLE_RATE)
    square = radius**2
    denominator = np.zeros((len(hz), 2 * hz.shape[1] + 1))
    denominator[:, 0] = 1.0
    for k in range(hz.shape[1]):
        previous = denominator.copy()
        denominator[:, 1:] += linear[:, k, None] * previous[:, :-1]
        denominator[:, 2:] += square[:, k, None] * previous[:, :-2]
    gain = denominator.sum(axis=1, keepdims=True)
    return gain / np.fft.rfft(denominator, _TRANSFORM)


def _spectra(signal):
    """Short-time spectra, complex (F, bins); frame i is centered on hop i."""
    padded = np.pad(signal, _WINDOW // 2)
    frames = sliding_window_view(padded, _WINDOW)[: len(signal) : _HOP]
    return np.fft.rfft(frames * _HANN, _TRANSFORM)


def _overlap_add(spectra):
    """The signal (T,) whose short-time spectra these are."""
    blocks = np.fft.irfft(spectra, _TRANSFORM)
    blocks = blocks.reshape(len(spectra), -1, _HOP)  # (F, 6, _HOP)
    signal = np.zeros((len(spectra) + blocks.shape[1] - 1, _HOP))
    for k in range(blocks.shape[1]):
        signal[k : k + len(spectra)] += blocks[:, k]
    return signal.ravel()
