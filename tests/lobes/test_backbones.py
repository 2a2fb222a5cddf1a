"""Backbones come from a folder, the cache or the hub, or a clear message."""

import json
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModel, PreTrainedModel

from emoq_modules.errors import BackboneError, CheckpointError
from emoq_modules.lobes import backbones
from emoq_modules.lobes.backbones import (
    fingerprint,
    load_tokenizer,
    load_whole,
    local_folder,
)
from emoq_modules.lobes.small_backbones import build_llm
from emoq_modules.lobes.weights import save_trainable
from tests.corpus_folders import snapshot
from tests.fake_hub import COMMIT, Hub


def test_a_folder_is_taken_as_it_is(text_encoder, no_hub):
    assert local_folder(text_encoder) == text_encoder
    assert load_tokenizer(text_encoder)("Oh no!").input_ids


def test_a_folder_that_lacks_something_is_refused(tmp_path, no_hub):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BackboneError, match=r"lacks model.safetensors or py"):
        local_folder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
    )
    (tmp_path / "2.safetensors").touch()
    with pytest.raises(BackboneError, match=r"lacks 1.safetensors\."):
        local_folder(tmp_path)
    with pytest.raises(BackboneError, match=r"lacks tokenizer_config.json"):
        load_tokenizer(tmp_path)


def test_what_is_no_folder_and_no_name_is_refused(no_hub):
    for source in ("/no/such/folder", "./no_such_folder", "a/b/c"):
        with pytest.raises(BackboneError, match=f"no folder {source}"):
            local_folder(source)


def test_without_a_network_it_fails_at_once_and_says_what_to_do(
    tmp_path, no_hub
):
    started = time.monotonic()
    with pytest.raises(BackboneError) as caught:
        local_folder("someone/model", "v1", cache_dir=tmp_path)
    assert time.monotonic() - started < 3
    for part in ("someone/model at revision v1", str(tmp_path), "hf download"):
        assert part in str(caught.value)


def test_a_hub_that_does_not_answer_is_not_waited_for(
    tmp_path, use_hub, monkeypatch
):
    monkeypatch.setattr(backbones, "_PATIENCE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_hub(f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(BackboneError, match="hf download"):
            local_folder("someone/model", cache_dir=tmp_path)
    assert time.monotonic() - started < 3


def test_a_download_is_taken_from_the_cache_afterwards(tmp_path, use_hub):
    hub = Hub(
        {
            "config.json": b"{}",
            "README.md": b"text",
            "model.safetensors": b"weights",
            "pytorch_model.bin": b"weights again",
            "tf_model.h5": b"and again",
        }
    )
    use_hub(hub.url)
    folder = local_folder("someone/model", cache_dir=tmp_path)
    assert folder.endswith(COMMIT)
    assert sorted(hub.downloaded) == ["config.json", "model.safetensors"]
    hub.server.shutdown()
    use_hub("http://127.0.0.1:9")
    assert local_folder("someone/model", cache_dir=tmp_path) == folder


def test_an_incomplete_download_is_completed(tmp_path, use_hub):
    hub = Hub({"config.json": b"{}", "model.safetensors": b"weights"})
    use_hub(hub.url)
    local_folder("someone/model", weights=False, cache_dir=tmp_path)
    assert hub.downloaded == ["config.json"]
    local_folder("someone/model", cache_dir=tmp_path)
    assert hub.downloaded == ["config.json", "model.safetensors"]


def test_pytorchs_format_is_downloaded_where_there_is_no_other(
    tmp_path, use_hub
):
    hub = Hub({"config.json": b"{}", "pytorch_model.bin": b"weights"})
    use_hub(hub.url)
    local_folder("someone/model", cache_dir=tmp_path)
    assert sorted(hub.downloaded) == ["config.json", "pytorch_model.bin"]


def test_a_whole_repository_is_completed_and_taken_from_the_cache_at_need(
    tmp_path, use_hub
):
    hub = Hub({"config.json": b"{}", "decoder.ckpt": b"weights"})
    use_hub(hub.url)
    wanted = {"weights": False, "cache_dir": tmp_path}
    folder = local_folder("someone/model", **wanted)
    assert hub.downloaded == ["config.json"]
    wanted["whole"] = True
    assert local_folder("someone/model", **wanted) == folder
    assert hub.downloaded == ["config.json", "decoder.ckpt"]
    hub.server.shutdown()
    use_hub("http://127.0.0.1:9")
    assert local_folder("someone/model", **wanted) == folder


def test_a_model_without_usable_weights_is_refused(tmp_path, use_hub):
    use_hub(Hub({"config.json": b"{}", "tf_model.h5": b"weights"}).url)
    with pytest.raises(BackboneError, match="has no model.safetensors"):
        local_folder("someone/model", cache_dir=tmp_path)


def test_for_want_of_memory_no_weights_are_called_damaged(tmp_path):
    class Large:
        @staticmethod
        def from_pretrained(folder, **_):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(RuntimeError, match="^DefaultCPUAllocator"):
        load_whole(tmp_path, kind=Large)


def test_a_name_that_the_hub_does_not_know_is_said_to_be_unknown(
    tmp_path, use_hub
):
    use_hub(Hub({}).url)
    with pytest.raises(BackboneError, match="someone/typo.*404"):
        local_folder("someone/typo", cache_dir=tmp_path)


def test_fingerprint_follows_content_and_not_name(text_encoder, tmp_path):
    model = AutoModel.from_pretrained(text_encoder)
    for name in ("a", "b"):
        model.save_pretrained(tmp_path / name)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "b")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


def test_a_backbone_that_cannot_be_written_whole_is_not_there(
    tmp_path, monkeypatch
):
    folder = tmp_path / "llm"
    build_llm(folder, ["Oh no!"], ["sad"])
    kept = snapshot(folder)

    def full(model, folder):
        Path(folder).mkdir()
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(BackboneError, match="llm cannot be written .*disk ful"):
        build_llm(folder, ["Oh no!"], ["sad"], seed=2)
    assert snapshot(folder) == kept
    assert [path.name for path in tmp_path.iterdir()] == ["llm"]


def test_weights_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no/a.safetensors cannot be wri"):
        save_trainable(torch.nn.Linear(2, 2), tmp_path / "no/a.safetensors")
