"""Frozen audio encoders: batch-invariant, in eval mode, never trained."""

import json
from itertools import product
from pathlib import Path

import pytest
import soundfile
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from emoq_modules import HuggingFaceEncoder
from emoq_modules.errors import BackboneError
from emoq_modules.lobes.audio_encoder import FrozenEncoder, count_layers
from emoq_modules.lobes.backbones import fingerprint

NORMS = ["layer", "group"]
# Families, and where there is a choice, what their first convolution has.
KINDS = [
    *product(["hubert", "unispeech", "unispeech-sat"], NORMS),
    *product(["wav2vec2", "wavlm"], NORMS),
    ("data2vec-audio", None),
    ("wav2vec2-bert", None),
    ("whisper", None),
]
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
# Windows of a second in the place of 30.
TINY_WHISPER = {
    "d_model": 32,
    "encoder_layers": LAYERS,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "num_mel_bins": 20,
    "max_source_positions": 50,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "vocab_size": 9,
    "pad_token_id": 0,
    "dropout": 0.5,
    "encoder_layerdrop": 0.5,
    "init_std": 0.2,
}


def save_tiny(folder, family, norm=None, **values):
    if norm is not None:
        values["feat_extract_norm"] = norm
        values["do_stable_layer_norm"] = norm == "layer"
    tiny = TINY_WHISPER if family == "whisper" else TINY
    extractor = Wav2Vec2FeatureExtractor(
        do_normalize=norm != "group", return_attention_mask=True
    )
    if family == "whisper":
        extractor = WhisperFeatureExtractor(feature_size=20, chunk_length=1)
    if family == "wav2vec2-bert":
        extractor = SeamlessM4TFeatureExtractor(padding_value=1)
    config = AutoConfig.for_model(family, **{**tiny, **values})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    extractor.save_pretrained(folder)
    return str(folder)


def transformers_states(folder, wav):
    """What transformers' own model makes of an utterance alone.

    The input of the first layer and the output of each, by hooks, and the
    model's output at the end; each ``(T', n)``.
    """
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    if model.config.is_encoder_decoder:
        model = model.encoder
    extract = AutoFeatureExtractor.from_pretrained(folder)
    inputs = extract(wav.numpy(), sampling_rate=16000, return_tensors="pt")
    states = []
    layers = getattr(model, "encoder", model).layers
    layers[0].register_forward_pre_hook(lambda _, args: states.append(args[0]))
    for layer in layers:
        layer.register_forward_hook(
            lambda _, args, output: states.append(
                output[0] if isinstance(output, tuple) else output
            )
        )
    with torch.no_grad():
        states.append(model(**inputs).last_hidden_state)
    count = states[0].shape[1]
    if model.config.model_type == "wav2vec2-bert":
        count = int(inputs.attention_mask.sum())
    if model.config.model_type == "whisper":
        count = -(-len(wav) // 320)
    return [state[0, :count] for state in states]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Folders of tiny models, each made at first use."""
    made = {}

    def make(family, norm=None):
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


@pytest.mark.parametrize(("family", "norm"), KINDS)
def test_frames_are_the_same_alone_and_padded(folder_of, family, norm):
    encoder = HuggingFaceEncoder(folder_of(family, norm))
    wavs = [*speech(4000, 12345, 40000, 400, 399, 1), torch.zeros(3000)]
    assert_same_alone_and_padded(encoder, wavs, 1e-5)
    if norm is not None:
        front_end = encoder.front_end
        front_end.do_normalize = not front_end.do_normalize
        assert_same_alone_and_padded(encoder, wavs, 1e-5)


@pytest.mark.parametrize(("family", "norm"), KINDS)
def test_frames_are_those_of_transformers(folder_of, family, norm):
    folder = folder_of(family, norm)
    (wav,) = speech(9100)  # for w2v-BERT an odd number of mel frames
    wav = wav * 0.01  # so quiet that the epsilon of normalizing it counts
    *states, output = transformers_states(folder, wav)
    for layer, used, expected in [
        (-1, LAYERS, output),
        (0, 0, states[0]),
        (2, 2, states[2]),
        (LAYERS, LAYERS, states[LAYERS]),
        ([2, 1], 2, torch.cat([states[2], states[1]], dim=1)),
        ([0], 0, states[0]),
        ("all", LAYERS, torch.cat(states, dim=1)),
    ]:
        encoder = HuggingFaceEncoder(folder, layer=layer)
        stack = getattr(encoder.model, "encoder", encoder.model)
        assert len(stack.layers) == used  # no more are kept
        assert encoder.frame_layers == count_layers(folder, layer)
        assert encoder.dim == 32 * encoder.frame_layers
        assert encoder.hop_s == 0.02
        frames = alone(encoder, wav)
        assert frames.shape == expected.shape
        torch.testing.assert_close(frames, expected, atol=1e-5, rtol=1e-5)


def test_whisper_hears_longer_audio_in_windows_and_all_of_it(folder_of):
    encoder = HuggingFaceEncoder(folder_of("whisper"))
    assert not [k for k, _ in encoder.named_parameters() if "decoder" in k]
    (wav,) = speech(40001)
    windows = [alone(encoder, window) for window in wav.split(16000)]
    assert [len(window) for window in windows] == [50, 50, 26]
    torch.testing.assert_close(alone(encoder, wav), torch.cat(windows))
    counts = [len(alone(encoder, wav[:n])) for n in (1, 320, 321, 16000)]
    assert counts == [1, 1, 2, 50]


def test_trained_whisper_is_loaded_in_single_precision(shared_data, trained):
    folder = trained("whisper-base")
    recording = sorted((shared_data / "emodb/flac").glob("*.flac"))[0]
    wav = torch.from_numpy(soundfile.read(recording, dtype="float32")[0])
    *states, output = transformers_states(folder, wav)
    stored = json.loads((folder / "config.json").read_text())["dtype"]
    assert stored == "float16"
    encoder = HuggingFaceEncoder(folder, layer=[4, 6])
    torch.testing.assert_close(
        alone(encoder, wav), torch.cat([states[4], states[6]], dim=1)
    )
    torch.testing.assert_close(alone(HuggingFaceEncoder(folder), wav), output)


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        *((k, str(k)) for k in (LAYERS + 1, -2, 1.5, True, "last")),
        *(([1, k], str(k)) for k in (-1, LAYERS + 1)),
        ([], r"\[\]"),
    ],
)
def test_a_layer_that_does_not_exist_is_refused(folder_of, layer, names):
    folder = folder_of("hubert", "layer")
    with pytest.raises(ValueError, match=f"no layer {names} in .* has 3.*all"):
        HuggingFaceEncoder(folder, layer=layer)


def test_an_adapter_after_the_layers_is_left_out(folder_of, tmp_path):
    (wav,) = speech(9000)
    adapted = save_tiny(tmp_path, "wav2vec2-bert", add_adapter=True)
    frames = alone(HuggingFaceEncoder(adapted), wav)
    *_, output = transformers_states(adapted, wav)
    without = alone(HuggingFaceEncoder(folder_of("wav2vec2-bert")), wav)
    assert len(output) < len(frames) == len(without)


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
    assert first == {  # as stores of version 0.1 have it
        "class": "HuggingFaceEncoder",
        "version": 2,
        "source": Path(folder).name,
        "revision": None,
        "weights": fingerprint(folder),
        "layer": -1,
    }
    for layer, kept in [(1, 1), ([1, 2], [1, 2]), ("all", [0, 1, 2, 3])]:
        encoder = HuggingFaceEncoder(folder, layer=layer)
        assert encoder.identity == {**first, "layer": kept}
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
    with pytest.raises(BackboneError, match="cannot be loaded .*get the model"):
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


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        (
            "config.json",
            '{"model_type": "bert"}',
            "family 'bert'.* hubert, uni",
        ),
        (
            "config.json",
            '{"model_type": "sew"}',
            "'sew', which is no audio enc",
        ),
        ("config.json", "{}", "family None"),
        ("config.json", "{", "config.json is no JSON .*again"),
        ("preprocessor_config.json", None, "lacks preprocessor_config.json. G"),
        (
            "preprocessor_config.json",
            '{"feature_size": 80, "chunk_length": 1}',
            "gives 80 mel filters, and 20 are wanted: take the one",
        ),
        (
            "preprocessor_config.json",
            '{"feature_size": 20}',
            "gives 3000 mel frames, and 100",
        ),
        (
            "preprocessor_config.json",
            '{"sampling_rate": 8000}',
            "gives 8000 samples a second, and 16000",
        ),
    ],
)
def test_a_folder_that_is_no_audio_encoders_is_refused(
    tmp_path, file, content, says
):
    save_tiny(tmp_path, "whisper")
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(BackboneError, match=f"^[^\n]*{says}[^\n]*$"):
        HuggingFaceEncoder(tmp_path)


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
