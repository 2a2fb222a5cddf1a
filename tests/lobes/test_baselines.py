"""What stands in the place of a part of EmoQ."""

import numpy as np
import pytest
import torch
from test_audio_encoder import (
    KINDS,
    alone,
    padded,
    save_tiny,
    speech,
    transformers_states,
)

from emoq_modules import (
    AudioFrames,
    FbankEncoder,
    HuggingFaceEncoder,
    LayerMeanEncoder,
    LayerWeightedMean,
    MeanPooledAudio,
)

AUDIO_DIM = 6


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    """The folder of a tiny HuBERT."""
    return save_tiny(tmp_path_factory.mktemp("hubert"), "hubert", "layer")


@pytest.mark.parametrize(("family", "norm"), KINDS)
def test_rows_are_the_means_of_transformers_hidden_states(
    tmp_path, family, norm
):
    folder = save_tiny(tmp_path, family, norm)
    encoder = LayerMeanEncoder(folder)
    normalized = LayerMeanEncoder(folder, frame_norm=True)
    wavs = speech(9000, 12345, 600)
    rows, lens = encoder(*padded(wavs, rubbish=0.3))
    assert lens.tolist() == [1.0] * len(wavs)
    assert rows.shape == (len(wavs), encoder.num_layers, encoder.dim)
    for wav, among_others in zip(wavs, rows, strict=True):
        *states, _ = transformers_states(folder, wav)
        expected = np.stack(
            [state.double().numpy().mean(axis=0) for state in states]
        )
        for found in (among_others, alone(encoder, wav)):
            np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
        frames = torch.stack(states).double()  # (layers, T', dim)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        variance = frames.square().mean(dim=-1, keepdim=True)
        expected = (frames / (variance + 1e-5).sqrt()).mean(dim=1)
        np.testing.assert_allclose(
            alone(normalized, wav), expected, atol=1e-5, rtol=1e-5
        )


def test_rows_are_not_taken_for_the_frames_of_the_same_model(hubert):
    means, frames = LayerMeanEncoder(hubert), HuggingFaceEncoder(hubert)
    assert means.identity["weights"] == frames.identity["weights"]
    assert means.identity == {**frames.identity, "class": "LayerMeanEncoder"}
    assert LayerMeanEncoder(hubert).identity == means.identity
    normalized = LayerMeanEncoder(hubert, frame_norm=True)
    assert normalized.identity == {**means.identity, "frame_norm": True}
    # Rows of layers are not in time.
    assert (means.num_layers, means.hop_s) == (4, None)
    assert frames.num_layers is FbankEncoder().num_layers is None


def test_mean_pooled_audio_leaves_padding_out():
    audio = torch.randn(2, 20, AUDIO_DIM)
    lens = torch.tensor([1.0, 17 / 20])
    pooled = MeanPooledAudio(AUDIO_DIM)(audio, lens, None, None)
    mean = audio[1, :17].mean(dim=0)
    torch.testing.assert_close(pooled[1], mean / mean.norm())


def test_frames_for_the_llm_are_centered_and_of_unit_length():
    audio = torch.randn(2, 20, AUDIO_DIM) * 50 + 300
    lens = torch.tensor([1.0, 17 / 20])
    frames, same = AudioFrames(AUDIO_DIM)(audio, lens, None, None)
    assert same is lens
    centered = audio.double() - audio.double().mean(dim=-1, keepdim=True)
    expected = centered / centered.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(frames.double(), expected, atol=1e-5, rtol=1e-5)


def test_layers_are_weighed_by_a_softmax():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 5, AUDIO_DIM, generator=generator)
    fusion = LayerWeightedMean(num_layers=5, dim=AUDIO_DIM)
    at_first = fusion(rows, torch.ones(3), None, None)
    torch.testing.assert_close(at_first, rows.mean(dim=1))

    scores = torch.randn(5, generator=generator)
    with torch.no_grad():
        fusion.scores.copy_(scores)
    exponents = np.exp(scores.double().numpy())
    weights = exponents / exponents.sum()
    expected = np.einsum("l,bld->bd", weights, rows.double().numpy())
    found = fusion(rows, torch.ones(3), None, None)
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-5, atol=1e-6)
    assert fusion.output_dim == AUDIO_DIM


def test_the_number_of_layers_must_be_the_encoders():
    fusion = LayerWeightedMean(num_layers=13, dim=AUDIO_DIM)
    with pytest.raises(ValueError, match="25 rows for the weights of 13 la"):
        fusion(torch.rand(2, 25, AUDIO_DIM), torch.ones(2), None, None)
    with pytest.raises(ValueError, match="make it an .*LayerMeanEncoder"):
        LayerWeightedMean(num_layers=None, dim=AUDIO_DIM)
