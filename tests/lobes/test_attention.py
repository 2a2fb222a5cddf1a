"""What the queries listen to: recorded, and drawn."""

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax

from emoq_modules import EmoQFormer, FbankEncoder
from emoq_modules.evaluation.plots import as_png, plot_attention
from tests.lobes import test_qformer

AUDIO_DIM, HEADS, FRAMES = 12, 4, (30, 17)


@pytest.fixture(scope="module")
def fusion(text_encoder):
    torch.manual_seed(0)
    fusion = EmoQFormer(text_encoder, AUDIO_DIM, num_queries=5, pooling_heads=4)
    with torch.no_grad():  # so that the weights are not all alike
        for layer in fusion.layers[::2]:
            layer.cross_attention.query.weight.mul_(10)
            layer.cross_attention.key.bias.normal_()
    return fusion.double().eval()


def batch():
    audio, *others = test_qformer.batch()
    return audio.double(), *others


@pytest.fixture(scope="module")
def weights(fusion):
    """(layers, B, heads, N_q, T)"""
    with fusion.record_attention() as recorded:
        fusion(*batch())
    return torch.stack(recorded)


def linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def norm(p, name, x):
    x = x - x.mean(axis=1, keepdims=True)
    x /= np.sqrt((x**2).mean(axis=1, keepdims=True) + p["eps"])
    return x * p[f"{name}.weight"] + p[f"{name}.bias"]


def attend(p, name, x, memory):
    """The layer's output, and its weights (heads, N, M)."""
    query, key, value = (
        linear(p, f"{name}.{part}", states).reshape(len(states), HEADS, -1)
        for part, states in (("query", x), ("key", memory), ("value", memory))
    )
    scores = np.einsum("nhd,mhd->hnm", query, key) / np.sqrt(query.shape[-1])
    weights = softmax(scores, axis=-1)
    attended = np.einsum("hnm,mhd->nhd", weights, value).reshape(len(x), -1)
    return norm(p, f"{name}.norm", x + linear(p, f"{name}.output", attended)), (
        weights
    )


def feed_forward(p, name, x):
    inner = linear(p, f"{name}.intermediate", x)
    inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
    return norm(p, f"{name}.norm", x + linear(p, f"{name}.output", inner))


def numpy_weights(fusion, audio, tokens):
    p = {k: v.numpy() for k, v in fusion.state_dict().items()}
    p["eps"] = fusion.config.layer_norm_eps
    first = fusion.config.pad_token_id + 1
    text = norm(
        p,
        "text_embeddings.norm",
        p["text_embeddings.word.weight"][tokens]
        + p["text_embeddings.position.weight"][first : first + len(tokens)]
        + p["text_embeddings.token_type.weight"][0],
    )
    queries = norm(p, "query_norm", p["queries"])
    frames = norm({**p, "eps": 1e-5}, "frame_norm", audio)
    frames = linear(p, "audio_projection", frames)
    recorded = []
    for index in range(len(fusion.layers)):
        name = f"layers.{index}"
        joint = np.concatenate([queries, text])
        joint, _ = attend(p, f"{name}.self_attention", joint, joint)
        queries, text = joint[: len(queries)], joint[len(queries) :]
        if f"{name}.cross_attention.query.weight" in p:
            cross = f"{name}.cross_attention"
            queries, weights = attend(p, cross, queries, frames)
            recorded.append(weights)
        queries = feed_forward(p, f"{name}.query_output", queries)
        if f"{name}.text_output.output.weight" in p:
            text = feed_forward(p, f"{name}.text_output", text)
    return np.stack(recorded)


def test_weights_are_those_of_numpy(fusion, weights):
    audio, _, tokens, _ = batch()
    for item, (frames, length) in enumerate(zip(FRAMES, (9, 4), strict=True)):
        expected = numpy_weights(
            fusion,
            audio[item, :frames].numpy(),
            tokens[item, :length].numpy(),
        )
        assert expected.max() > 3 / frames  # they are not all alike
        found = weights[:, item, ..., :frames]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_weights_sum_to_one_over_frames_and_are_zero_on_padding(weights):
    assert weights.shape == (2, 2, HEADS, 5, 30)  # of every second layer
    np.testing.assert_allclose(weights.sum(dim=-1), 1, rtol=1e-12)
    assert (weights[:, 1, ..., 17:] == 0).all()
    assert (weights[:, 1, ..., :17] > 0).all()


@pytest.mark.parametrize("training", [False, True])
def test_embeddings_are_the_same_recorded_or_not(fusion, training):
    fusion.train(training)
    torch.manual_seed(1)  # of dropout
    expected = fusion(*batch())
    torch.manual_seed(1)
    with fusion.record_attention():
        found = fusion(*batch())
    fusion.eval()
    assert torch.equal(found, expected)


def test_nothing_is_recorded_after_the_block(fusion):
    with fusion.record_attention() as recorded:
        fusion(*batch())
    with pytest.raises(RuntimeError, match="stopped"):
        with fusion.record_attention():
            raise RuntimeError("stopped")
    fusion(*batch())
    assert len(recorded) == 2
    assert not any(module._forward_hooks for module in fusion.modules())


def test_weights_have_no_gradient(fusion):
    with fusion.record_attention() as recorded:
        assert fusion(*batch()).requires_grad
    assert not any(weights.requires_grad for weights in recorded)


def test_a_module_that_never_listens_says_so(text_encoder):
    deaf = EmoQFormer(text_encoder, AUDIO_DIM, cross_attention_every=0)
    with pytest.raises(ValueError, match="cross_attention_every .* above 0"):
        with deaf.record_attention():
            pass


def drawn(weights, seconds=2.0, hop_s=0.08):
    wav = np.sin(np.arange(round(16000 * seconds)) / 20)
    figure = plot_attention(weights, wav, hop_s, "a tone")
    return figure, *figure.axes[:2]


def test_a_query_is_a_row_and_a_frame_a_column_at_its_time():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(25), size=3)
    _, above, below = drawn(weights)
    (mesh,) = below.collections
    np.testing.assert_allclose(mesh.get_array(), 25 * weights)
    corners = mesh.get_coordinates()  # (N_q + 1, T + 1, 2)
    np.testing.assert_allclose(corners[0, :, 0], 0.08 * np.arange(26))
    np.testing.assert_allclose(corners[:, 0, 1], [0.5, 1.5, 2.5, 3.5])
    assert below.get_ylim() == (3.5, 0.5)  # the first query is the top one
    times, _ = above.lines[0].get_data()
    assert times[16000] == 1.0


def test_waveform_and_attention_are_over_the_same_time():
    figure, above, below = drawn(np.full((4, 25), 1 / 25))
    as_png(figure)  # which lays it out
    assert above.get_xlim() == below.get_xlim() == (0, 2)
    places = [axes.get_position() for axes in (above, below)]
    assert places[0].x0 == places[1].x0 and places[0].x1 == places[1].x1


@pytest.mark.parametrize("samples", [400, 16000, 16001, 17279, 17280])
@pytest.mark.parametrize("stack", [1, 8])
def test_frames_of_an_encoder_fit_the_recording(samples, stack):
    encoder = FbankEncoder(n_mels=20, stack=stack)
    frames, _ = encoder(torch.rand(1, samples), torch.ones(1))
    weights = torch.full((2, frames.shape[1]), 1 / frames.shape[1])
    drawn(weights, samples / 16000, encoder.hop_s)


@pytest.mark.parametrize("shape", [(4, 25), (4, 8), (2, 4, 13)])
def test_weights_of_another_recording_or_padded_are_refused(shape):
    with pytest.raises(ValueError, match="recording of 1.00 s: give .* padd"):
        drawn(np.ones(shape), seconds=1.0)
