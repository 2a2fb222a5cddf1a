"""Frozen audio encoders: batch-invariant, in eval mode, never trained."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    Wav2Vec2FeatureExtractor,
)

from emoq_modules import HuggingFaceEncoder
from emoq_modules.errors import BackboneError
from emoq_modules.lobes.audio_encoder import FrozenEncoder

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


def save_tiny(folder, family, norm):
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
    return str(folder)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Folders of tiny models, each made at first use."""
    made = {}

    def make(family, norm):
        if (family, norm) not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{norm}")
            made[family, norm] = save_tiny(folder, family, norm)
        return made[family, norm]

    return make


def speech(*lengths, seed=0):
    """Waveforms of these lengths, neither centered nor of unit variance."""
    generator = torch.Generator().manual_seed(seed)
    return [
        0.05 * torch.randn(length, generator=generator) + 0.01 * (index + 1)
        for index, length in enumerate(lengths)
    ]


def padded(wavs, rubbish=0.0):
    lengths = torch.tensor([len(wav) for wav in wavs])
    batch = torch.full((len(wavs), int(lengths.max())), rubbish)
    for row, wav in zip(batch, wavs, strict=True):
        row[: len(wav)] = wav
    return batch, lengths / lengths.max()


def alone(encoder, wav):
    frames, lens = encoder(wav[None], torch.ones(1))
    assert lens.tolist() == [1.0]
    return frames[0]


def assert_same_alone_and_padded(encoder, wavs, tolerance):
    # Whatever stands in the padding must not matter.
    frames, lens = encoder(*padded(wavs, rubbish=0.3))
    counts = (lens * frames.shape[1]).round().int().tolist()
    for wav, row, count in zip(wavs, frames, counts, strict=True):
        expected = alone(encoder, wav)
        assert count == len(expected)
        assert row.isfinite().all()
        assert (row[:count] - expected).abs().max() <= tolerance
        assert (row[count:] == 0).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_frames_are_the_same_alone_and_padded(folder_of, family, norm):
    encoder = HuggingFaceEncoder(folder_of(family, norm))
    assert encoder.one_by_one == (norm == "group")
    wavs = [*speech(4000, 12345, 7777, 400, 399, 1), torch.zeros(3000)]
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
    wav = wav * 0.01  # so quiet that the epsilon of normalizing it counts
    inputs = extract(wav.numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        expected = model(inputs.input_values, output_hidden_states=True)
    for layer, states in [
        (-1, expected.last_hidden_state),
        (0, expected.hidden_states[0]),
        (2, expected.hidden_states[2]),
    ]:
        encoder = HuggingFaceEncoder(folder, layer=layer)
        used = LAYERS if layer < 0 else layer
        assert len(encoder.model.encoder.layers) == used  # no more are kept
        frames = alone(encoder, wav)
        assert frames.shape == states[0].shape
        torch.testing.assert_close(frames, states[0], atol=1e-5, rtol=1e-5)


def test_a_layer_that_does_not_exist_is_refused(folder_of):
    for layer in (LAYERS + 1, -2):
        with pytest.raises(ValueError, match=f"no layer {layer} .* has 3"):
            HuggingFaceEncoder(folder_of("hubert", "layer"), layer=layer)


@pytest.mark.parametrize("norm", NORMS)
def test_train_mode_cannot_be_entered_and_nothing_trains(folder_of, norm):
    encoder = HuggingFaceEncoder(folder_of("wavlm", norm))
    wavs = padded(speech(8000, 5000))
    before, _ = encoder(*wavs)
    around = torch.nn.ModuleDict({"encoder": encoder}).train()
    after, _ = encoder(*wavs)
    assert around.training
    assert not any(module.training for module in encoder.modules())
    assert torch.equal(before, after)
    assert not any(p.requires_grad for p in encoder.parameters())
    wav = speech(4000)[0].requires_grad_()
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


def test_a_folder_with_missing_or_truncated_weights_is_refused(
    folder_of, tmp_path
):
    model = AutoModel.from_pretrained(folder_of("hubert", "layer"))
    state = model.state_dict()
    del state["encoder.layers.1.attention.k_proj.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="lacks 1 .*layers.1.attention.k_"):
        HuggingFaceEncoder(tmp_path)
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


def test_frames_of_hubert_are_20_ms_apart(folder_of):
    encoder = HuggingFaceEncoder(folder_of("hubert", "layer"))
    assert encoder.hop_s == 0.02
    more = len(alone(encoder, torch.zeros(32000))) - len(
        alone(encoder, torch.zeros(16000))
    )
    assert more * encoder.hop_s == 1.0


def test_precision_changes_what_is_computed_in_and_the_identity():
    values = {
        **TINY,
        "model_type": "hubert",
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        # On some processors oneDNN's product of a few channels a group is
        # wrong in bfloat16; that of the paper's encoder, 64 a group, is right.
        "num_conv_pos_embedding_groups": 2,
        "initializer_range": 0.02,
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
