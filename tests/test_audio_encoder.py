"""Frozen audio encoders: batch-invariant, in eval mode, never trained."""

import inspect

import numpy as np
import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    Wav2Vec2FeatureExtractor,
)

from emoq_modules import (
    FbankEncoder,
    HuggingFaceEncoder,
    LayerMeanEncoder,
    audio_encoder,
)
from emoq_modules.audio_encoder import FrozenEncoder
from emoq_modules.backbones import BackboneError

FAMILIES = ["hubert", "wav2vec2", "wavlm"]
NORMS = ["layer", "group"]
LAYERS = 3
# Dropout and masking would show at once in train mode.
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [24] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "hidden_dropout": 0.5,
    "attention_dropout": 0.5,
    "feat_proj_dropout": 0.5,
    "layerdrop": 0.5,
    "mask_time_prob": 0.5,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Folders of tiny models, as ``save_pretrained`` writes them."""
    made = {}

    def make(family, norm):
        """The folder of a model, made at first use."""
        if (family, norm) not in made:
            folder = str(tmp_path_factory.mktemp(f"{family}-{norm}"))
            config = AutoConfig.for_model(
                family,
                feat_extract_norm=norm,
                do_stable_layer_norm=norm == "layer",
                **TINY,
            )
            with torch.random.fork_rng():
                torch.manual_seed(0)
                AutoModel.from_config(config).save_pretrained(folder)
            Wav2Vec2FeatureExtractor(
                do_normalize=norm == "layer", return_attention_mask=True
            ).save_pretrained(folder)
            made[family, norm] = folder
        return made[family, norm]

    return make


def speech(*lengths, seed=0):
    """Waveforms of these lengths, neither centred nor of unit variance."""
    generator = torch.Generator().manual_seed(seed)
    return [
        0.05 * torch.randn(length, generator=generator) + 0.01 * (index + 1)
        for index, length in enumerate(lengths)
    ]


def padded(wavs, rubbish=0.0):
    """A batch of waveforms, and their relative lengths."""
    lengths = torch.tensor([len(wav) for wav in wavs])
    batch = torch.full((len(wavs), int(lengths.max())), rubbish)
    for row, wav in zip(batch, wavs, strict=True):
        row[: len(wav)] = wav
    return batch, lengths / lengths.max()


def alone(encoder, wav):
    """Frames of one waveform."""
    frames, lens = encoder(wav[None], torch.ones(1))
    assert lens.tolist() == [1.0]
    return frames[0]


def assert_same_alone_and_padded(encoder, wavs, tolerance):
    """Whether frames depend on the batch."""
    # Whatever stands in the padding must not matter.
    frames, lens = encoder(*padded(wavs, rubbish=0.3))
    counts = (lens * frames.shape[1]).round().int().tolist()
    for wav, row, count in zip(wavs, frames, counts, strict=True):
        expected = alone(encoder, wav)
        assert count == len(expected)
        assert row.isfinite().all()
        assert (row[:count] - expected).abs().max() <= tolerance
        assert (row[count:] == 0).all()


# --- HuggingFaceEncoder -------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_frames_are_the_same_alone_and_padded(folder_of, family, norm):
    encoder = HuggingFaceEncoder(folder_of(family, norm))
    assert encoder.one_by_one == (norm == "group")
    wavs = speech(4000, 12345, 7777, 400, 399, 1)
    assert_same_alone_and_padded(encoder, wavs, 1e-5)
    encoder.do_normalize = not encoder.do_normalize
    assert_same_alone_and_padded(encoder, wavs, 1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_frames_are_those_of_transformers(folder_of, family, norm):
    folder = folder_of(family, norm)
    model = AutoModel.from_pretrained(folder).eval()
    extract = AutoFeatureExtractor.from_pretrained(folder)
    (wav,) = speech(9000)
    wav = wav * 0.01  # so quiet that the epsilon of normalising it counts
    inputs = extract(wav.numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        expected = model(inputs.input_values, output_hidden_states=True)
    for layer, states in [
        (-1, expected.last_hidden_state),
        (0, expected.hidden_states[0]),
        (2, expected.hidden_states[2]),
    ]:
        frames = alone(HuggingFaceEncoder(folder, layer=layer), wav)
        assert frames.shape == states[0].shape
        torch.testing.assert_close(frames, states[0], atol=1e-5, rtol=1e-5)


def test_layers_above_the_one_that_is_taken_are_dropped(folder_of):
    encoder = HuggingFaceEncoder(folder_of("hubert", "layer"), layer=1)
    assert len(encoder.model.encoder.layers) == 1


def test_a_layer_that_does_not_exist_is_refused(folder_of):
    for layer in (LAYERS + 1, -2):
        with pytest.raises(ValueError, match=f"no layer {layer} .* has 3"):
            HuggingFaceEncoder(folder_of("hubert", "layer"), layer=layer)


@pytest.mark.parametrize("norm", NORMS)
def test_train_mode_cannot_be_entered(folder_of, norm):
    encoder = HuggingFaceEncoder(folder_of("wavlm", norm))
    wavs = padded(speech(8000, 5000))
    before, _ = encoder(*wavs)
    around = torch.nn.ModuleDict({"encoder": encoder}).train()
    after, _ = encoder(*wavs)
    assert around.training
    assert not any(module.training for module in encoder.modules())
    assert torch.equal(before, after)


def test_nothing_in_an_encoder_trains(folder_of):
    encoder = HuggingFaceEncoder(folder_of("hubert", "layer"))
    wav = speech(4000)[0].requires_grad_()
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not alone(encoder, wav).requires_grad


class OwnEncoder(FrozenEncoder):
    """Somebody's own, who has not thought of freezing."""

    def __init__(self):
        super().__init__(3, {"class": "OwnEncoder"})
        self.layer = torch.nn.Sequential(
            torch.nn.Linear(1, 3), torch.nn.Dropout(0.5)
        )
        self.offset = torch.nn.Parameter(torch.ones(3))

    def encode(self, wavs, samples):
        """A frame a sample."""
        frames = self.layer(wavs[..., None]) + self.offset
        return [f[:n] for f, n in zip(frames, samples, strict=True)]


def test_what_a_new_encoder_is_made_of_is_frozen_as_it_comes():
    encoder = OwnEncoder()
    assert not any(p.requires_grad for p in encoder.parameters())
    assert len(list(encoder.parameters())) == 3
    assert not any(module.training for module in encoder.modules())
    wavs, lens = torch.rand(2, 50), torch.ones(2)
    assert torch.equal(encoder(wavs, lens)[0], encoder(wavs, lens)[0])


def test_precision_of_the_training_around_it_does_not_matter(folder_of):
    encoder = HuggingFaceEncoder(folder_of("wav2vec2", "layer"))
    (wav,) = speech(4000)
    with torch.autocast("cpu", torch.bfloat16):
        frames = alone(encoder, wav)
    assert frames.dtype == torch.float32
    assert torch.equal(frames, alone(encoder, wav))


def test_an_utterance_without_samples_is_named(folder_of):
    encoder = HuggingFaceEncoder(folder_of("hubert", "layer"))
    with pytest.raises(ValueError, match="Utterance 1 .* 0 samples"):
        encoder(torch.rand(2, 500), torch.tensor([1.0, 0.0]))
    wavs = torch.rand(2, 500)
    wavs[0, 7] = float("nan")
    with pytest.raises(ValueError, match="Utterance 0 .* NaN"):
        encoder(wavs, torch.ones(2))


def test_silence_gives_finite_frames(folder_of):
    for norm in NORMS:
        encoder = HuggingFaceEncoder(folder_of("hubert", norm))
        assert alone(encoder, torch.zeros(3000)).isfinite().all()


def test_identity_follows_what_determines_the_frames(folder_of, tmp_path):
    folder = folder_of("hubert", "layer")
    first = HuggingFaceEncoder(folder).identity
    assert HuggingFaceEncoder(folder).identity == first
    assert HuggingFaceEncoder(folder, layer=1).identity != first
    other = HuggingFaceEncoder(folder).model
    other.encoder.layers[0].final_layer_norm.bias[0] += 1
    # The same name, other weights.
    folder = tmp_path / first["source"]
    other.save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    second = HuggingFaceEncoder(folder).identity
    assert second["source"] == first["source"]
    assert second["weights"] != first["weights"]


def test_a_configuration_gives_random_weights_of_no_shared_identity():
    source = {"model_type": "wavlm", **TINY}
    encoders = [HuggingFaceEncoder(source) for _ in range(2)]
    assert encoders[0].identity != encoders[1].identity
    assert encoders[0].dim == 32
    assert not any(p.requires_grad for p in encoders[0].parameters())


def test_a_folder_with_missing_weights_is_refused(folder_of, tmp_path):
    model = AutoModel.from_pretrained(folder_of("hubert", "layer"))
    state = model.state_dict()
    del state["encoder.layers.1.attention.k_proj.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="lacks 1 .*layers.1.attention.k_"):
        HuggingFaceEncoder(tmp_path)


def test_truncated_weights_are_refused(folder_of, tmp_path):
    AutoModel.from_pretrained(folder_of("hubert", "layer")).save_pretrained(
        tmp_path
    )
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BackboneError, match="cannot be loaded .*download"):
        HuggingFaceEncoder(tmp_path)


def test_weights_in_pytorchs_format_are_loaded(folder_of, tmp_path):
    folder = folder_of("hubert", "layer")
    model = AutoModel.from_pretrained(folder)
    model.config.save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    weights = tmp_path / "pytorch_model.bin"
    torch.save(model.state_dict(), weights)
    (wav,) = speech(2000)
    expected = alone(HuggingFaceEncoder(folder), wav)
    assert torch.equal(alone(HuggingFaceEncoder(tmp_path), wav), expected)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BackboneError, match="cannot be loaded"):
        HuggingFaceEncoder(tmp_path)


def test_a_model_of_another_family_is_refused(text_encoder, tmp_path):
    AutoModel.from_pretrained(text_encoder).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="family 'roberta'.* hubert, wav2"):
        HuggingFaceEncoder(tmp_path)


# --- LayerMeanEncoder ---------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_the_means_of_transformers_hidden_states(
    folder_of, family, norm
):
    folder = folder_of(family, norm)
    model = AutoModel.from_pretrained(folder).eval()
    extract = AutoFeatureExtractor.from_pretrained(folder)
    encoder = LayerMeanEncoder(folder)
    wavs = speech(9000, 12345, 400)
    rows, lens = encoder(*padded(wavs, rubbish=0.3))
    assert lens.tolist() == [1.0] * len(wavs)
    assert rows.shape == (len(wavs), LAYERS + 1, encoder.dim)
    for wav, among_others in zip(wavs, rows, strict=True):
        inputs = extract(wav.numpy(), sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            states = model(
                inputs.input_values, output_hidden_states=True
            ).hidden_states
        expected = np.stack(
            [state[0].double().numpy().mean(axis=0) for state in states]
        )
        for found in (among_others, alone(encoder, wav)):
            np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_rows_are_not_taken_for_the_frames_of_the_same_model(folder_of):
    folder = folder_of("hubert", "layer")
    means, frames = LayerMeanEncoder(folder), HuggingFaceEncoder(folder)
    assert means.identity["weights"] == frames.identity["weights"]
    assert means.identity != frames.identity
    assert LayerMeanEncoder(folder).identity == means.identity


def test_only_means_of_layers_have_a_number_of_layers(folder_of):
    folder = folder_of("hubert", "layer")
    assert LayerMeanEncoder(folder).num_layers == LAYERS + 1
    assert HuggingFaceEncoder(folder).num_layers is None
    assert FbankEncoder().num_layers is None


# --- FbankEncoder -------------------------------------------------------------

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
    for low, centre in zip(edges[:-2], edges[1:-1], strict=True):
        slope = (bins - centre) / (centre - low)
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


def test_normalisation_is_over_the_frames_of_the_utterance():
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


def test_fbank_has_nothing_to_train():
    encoder = FbankEncoder(deltas=True)
    assert list(encoder.parameters()) == []
    assert not encoder.train().training


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="'sentence'.* mean_std"):
        FbankEncoder(normalize="sentence")


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


def test_encoders_are_made_by_yaml(folder_of):
    hparams = load_hyperpyyaml(
        f"""
        fbank: !new:emoq_modules.FbankEncoder
            n_mels: 40
            stack: 4
        hubert: !new:emoq_modules.HuggingFaceEncoder
            source: {folder_of("hubert", "layer")}
            layer: 2
        dim: !ref <hubert.dim>
        """
    )
    assert hparams["fbank"].dim == 160
    assert hparams["dim"] == 32
    assert hparams["hubert"].sample_rate == 16000


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
    "settings", [{"window": 1}, {"window": 8, "deltas": True}]
)
def test_window_that_cannot_be_described_is_refused(settings):
    with pytest.raises(ValueError, match="window"):
        FbankEncoder(**settings)


# --- Where frames are in time -------------------------------------------------


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


def test_frames_of_hubert_are_20_ms_apart(folder_of):
    encoder = HuggingFaceEncoder(folder_of("hubert", "layer"))
    assert encoder.hop_s == 0.02
    more = len(alone(encoder, torch.zeros(32000))) - len(
        alone(encoder, torch.zeros(16000))
    )
    assert more * encoder.hop_s == 1.0


def test_rows_of_layers_are_not_in_time(folder_of):
    assert LayerMeanEncoder(folder_of("hubert", "layer")).hop_s is None


def test_precision_changes_what_is_computed_in_and_the_identity():
    values = {
        "model_type": "hubert",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "conv_dim": [32] * 7,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
    }
    torch.manual_seed(0)
    exact = HuggingFaceEncoder(values)
    torch.manual_seed(0)
    coarse = HuggingFaceEncoder(values, precision="bf16")
    wavs, lens = torch.randn(2, 16000), torch.tensor([1.0, 0.6])
    frames, frame_lens = coarse(wavs, lens)
    assert frames.dtype == torch.float32
    expected, expected_lens = exact(wavs, lens)
    assert torch.equal(frame_lens, expected_lens)
    difference = (frames - expected).abs().max() / expected.abs().max()
    assert 1e-5 < difference < 0.05
    assert coarse.identity["precision"] == "bf16"
    assert "precision" not in exact.identity  # stores of before stay valid
    with pytest.raises(ValueError, match="fp32 or bf16; it is 'int8'"):
        HuggingFaceEncoder(values, precision="int8")


def test_products_of_onednn_are_those_of_torch():
    layer = audio_encoder._Linear(40, 24)
    x = torch.randn(2, 7, 40)
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        assert torch.equal(layer(x), expected)
    finally:
        torch.backends.mkldnn.enabled = before
