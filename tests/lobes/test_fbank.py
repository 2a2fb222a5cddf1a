"""The filter bank: frames of its own kind, the same in any company."""

import inspect

import numpy as np
import pytest
import soundfile
import torch
from test_audio_encoder import (
    alone,
    assert_same_alone_and_padded,
    padded,
    speech,
)

from emoq_modules import FbankEncoder

SETTINGS = [
    {},
    {"deltas": True, "normalize": "mean"},
    {"context_frames": 2, "normalize": "mean_std"},
    {"n_mels": 40, "deltas": True, "context_frames": 1, "stack": 4},
]


def log_mel(wav, n_mels, n_fft=512):
    """Log-mel energies in dB, 80 dB deep, in float64."""
    window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(400) / 400)
    window = np.pad(window, (n_fft - 400) // 2)
    padded = np.pad(wav.astype(np.float64), n_fft // 2)
    starts = range(0, len(padded) - n_fft + 1, 160)
    power = np.stack(
        [
            np.abs(np.fft.rfft(window * padded[start : start + n_fft])) ** 2
            for start in starts
        ]
    )
    top = 2595 * np.log10(1 + 8000 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, n_mels + 2) / 2595) - 1)
    bins = np.linspace(0, 8000, n_fft // 2 + 1)
    filters = []
    for low, center in zip(edges[:-2], edges[1:-1], strict=True):
        slope = (bins - center) / (center - low)
        filters.append(np.maximum(0, np.minimum(1 + slope, 1 - slope)))
    energy = 10 * np.log10(np.maximum(power @ np.array(filters).T, 1e-10))
    return np.maximum(energy, energy.max() - 80)


@pytest.mark.parametrize("settings", SETTINGS)
def test_fbank_is_the_same_alone_and_padded(settings):
    # The loud one would lift the floor of the others, were it shared.
    wavs = speech(20000, 7000, 399, 161, 1)
    wavs[0] = wavs[0] * 1000
    assert_same_alone_and_padded(FbankEncoder(**settings), wavs, 0.0)


def test_fbank_is_a_log_mel_filter_bank():
    (wav,) = speech(5000)
    expected = (log_mel(wav.numpy(), 80) + 16) / 17.5
    frames = alone(FbankEncoder(), wav)
    np.testing.assert_allclose(frames, expected, atol=1e-4)


def test_stacking_joins_frames_with_their_context():
    (wav,) = speech(16000 * 3)
    single = alone(FbankEncoder(n_mels=20), wav)
    encoder = FbankEncoder(n_mels=20, stack=4, context_frames=2)
    frames = alone(encoder, wav)
    assert encoder.dim == 20 * 8
    assert single.shape == (301, 20)
    assert frames.shape == (76, 160)
    assert torch.equal(frames[5], single[18:26].flatten())
    first = torch.cat([single[:1], single[:1], single[:6]])
    assert torch.equal(frames[0], first.flatten())
    last = torch.cat([single[298:301], *[single[300:301]] * 5])
    assert torch.equal(frames[75], last.flatten())


def test_derivatives_follow_the_energies():
    (wav,) = speech(8000)
    frames = alone(FbankEncoder(n_mels=20, deltas=True), wav)
    energies, slopes = frames[:, :20] * 17.5, frames[:, 20:40] * 3.9
    t = 10
    expected = sum(k * energies[t + k] for k in (-2, -1, 1, 2)) / 10
    torch.testing.assert_close(slopes[t], expected, atol=1e-4, rtol=1e-4)


def test_normalization_is_over_the_frames_of_the_utterance():
    wavs = padded(speech(16000, 4000))
    frames, lens = FbankEncoder(normalize="mean_std")(*wavs)
    short = frames[1, : round(lens[1].item() * frames.shape[1])]
    torch.testing.assert_close(
        short.mean(dim=0), torch.zeros(80), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        short.std(dim=0, correction=0), torch.ones(80), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("settings", SETTINGS)
def test_silence_and_one_sample_give_finite_frames(settings):
    encoder = FbankEncoder(**settings)
    for wav in (torch.zeros(16000), torch.zeros(1), torch.ones(1)):
        frames = alone(encoder, wav)
        assert frames.shape[0] >= 1 and frames.shape[1] == encoder.dim
        assert frames.isfinite().all() and frames.abs().max() < 10


def test_identity_of_fbank_holds_every_setting():
    settings = inspect.signature(FbankEncoder).parameters
    assert set(settings) < set(FbankEncoder().identity)
    identities = [FbankEncoder(**settings).identity for settings in SETTINGS]
    assert all(identities.count(identity) == 1 for identity in identities)
    assert not list(FbankEncoder(deltas=True).parameters())


def test_fbank_values_of_real_speech_are_around_one(shared_data):
    files = sorted((shared_data / "emodb" / "flac").glob("*.flac"))[::40]
    encoder = FbankEncoder(deltas=True)
    frames = torch.cat(
        [
            alone(encoder, torch.from_numpy(soundfile.read(file)[0]).float())
            for file in files
        ]
    )
    for stream in frames.split(80, dim=1):
        assert abs(stream.mean()) < 0.2
        assert 0.8 < stream.std() < 1.2


def test_window_describes_the_frames_around():
    wav = torch.randn(9000, generator=torch.Generator().manual_seed(0))
    frames = FbankEncoder(n_mels=20)(wav[None], torch.ones(1))[0][0]
    frames = frames.double().numpy()
    encoder = FbankEncoder(n_mels=20, stack=8, window=32)
    described = encoder(wav[None], torch.ones(1))[0][0]
    assert described.shape == (-(-len(frames) // 8), encoder.dim)
    for token, values in enumerate(described.double().numpy()):
        window = [
            frames[min(max(8 * token - 12 + offset, 0), len(frames) - 1)]
            for offset in range(32)
        ]
        mean, deviation = np.mean(window, axis=0), np.std(window, axis=0)
        change = np.abs(np.diff(window, axis=0)).mean(axis=0)
        expected = np.stack(
            [
                (mean - 0.04) / 0.69,
                (deviation - 0.65) / 0.27,
                (change - 0.26) / 0.09,
            ],
            axis=-1,
        ).ravel()
        np.testing.assert_allclose(values, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"window": 1}, "window"),
        ({"window": 8, "deltas": True}, "window"),
        ({"normalize": "sentence"}, "'sentence'.* mean_std"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        FbankEncoder(**settings)


@pytest.mark.parametrize("stack", [1, 4, 7])
@pytest.mark.parametrize("heard_s", [0.1, 0.333, 0.9])
def test_a_frame_of_the_filter_bank_is_where_the_sound_is(stack, heard_s):
    encoder = FbankEncoder(n_mels=20, stack=stack)
    wav = torch.zeros(16000)
    wav[round(heard_s * 16000)] = 0.5
    loudest = alone(encoder, wav).amax(dim=1).argmax().item()
    # A window of 25 ms may lie over the border to the next frame.
    from_s, to_s = loudest * encoder.hop_s, (loudest + 1) * encoder.hop_s
    assert from_s - 0.0125 <= heard_s <= to_s + 0.0125
