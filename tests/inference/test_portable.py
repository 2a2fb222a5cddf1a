"""Which backbones an export takes along, and how it names the others."""

import shutil

import pytest
import torch
from ruamel.yaml import YAML
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    HubertConfig,
    Wav2Vec2FeatureExtractor,
)

from emoq_modules import HuggingFaceEncoder
from emoq_modules.errors import ExportError
from emoq_modules.inference.portable import take_along, take_llm
from tests.fake_hub import COMMIT

BOTH = """\
audio_encoder: !new:emoq_modules.HuggingFaceEncoder
    source: someone/hubert
    save_path: {cached}
decoder: {{source: someone/llm, tokenizer: someone/llm}}
"""
LABELS = ["angry", "happy", "sad"]


@pytest.fixture
def cached(llm, tmp_path, monkeypatch):
    """A cache of the hub that holds a HuBERT and an LLM."""
    cache = tmp_path / "cache"
    folders = {}
    for name in ("hubert", "llm"):
        root = cache / f"models--someone--{name}"
        folders[name] = root / "snapshots" / COMMIT
        (root / "refs").mkdir(parents=True)
        (root / "refs/main").write_text(COMMIT)
    shutil.copytree(llm, folders["llm"])
    (folders["llm"] / "LICENCE").write_text("Take it.")
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    model = AutoModel.from_config(config)
    model.save_pretrained(folders["hubert"])
    # As facebook/hubert-large-ll60k has them.
    (folders["hubert"] / "model.safetensors").unlink()
    torch.save(model.state_dict(), folders["hubert"] / "pytorch_model.bin")
    Wav2Vec2FeatureExtractor().save_pretrained(folders["hubert"])
    for module in ("constants", "file_download"):
        monkeypatch.setattr(
            f"huggingface_hub.{module}.HF_HUB_CACHE", str(cache), raising=False
        )
    return cache


def tree_of(text):
    return {
        "labels": LABELS,
        "audio_encoder": None,
        "fusion": None,
        "text_tokenizer": None,
        **YAML().load(text),
    }


def test_names_on_the_hub_stay_names_at_their_commit(cached, tmp_path, no_hub):
    tree = tree_of(BOTH.format(cached=cached))
    encoder = HuggingFaceEncoder("someone/hubert", save_path=str(cached))
    take_along(tree, {"encoder": encoder}, tmp_path)
    take_llm(tree["decoder"], tmp_path)
    node = tree["audio_encoder"]
    assert dict(node) == {"source": "someone/hubert", "revision": COMMIT}
    assert tree["decoder"]["source"] == "someone/llm"
    assert tree["decoder"]["revision"] == COMMIT
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_included_backbones_are_copied_as_safetensors(cached, tmp_path, no_hub):
    tree = tree_of(BOTH.format(cached=cached))
    encoder = HuggingFaceEncoder("someone/hubert", save_path=str(cached))
    take_along(tree, {"encoder": encoder}, tmp_path, include_backbones=True)
    take_llm(tree["decoder"], tmp_path, include_backbones=True)
    assert tree["audio_encoder"]["source"].ref_str.endswith("/audio_encoder")
    copy = HuggingFaceEncoder(str(tmp_path / "audio_encoder"))
    wavs, lens = torch.rand(1, 8000), torch.ones(1)
    assert torch.equal(copy(wavs, lens)[0], encoder(wavs, lens)[0])
    assert not list((tmp_path / "audio_encoder").glob("*.bin"))
    AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
    AutoTokenizer.from_pretrained(tmp_path / "llm")
    assert (tmp_path / "llm/LICENCE").read_text() == "Take it."


def test_random_weights_that_never_train_are_not_exported(tmp_path):
    tree = tree_of("decoder: {source: {model_type: qwen2}, tokenizer: x}")
    with pytest.raises(ExportError, match="weights of the llm are random"):
        take_llm(tree["decoder"], tmp_path)
