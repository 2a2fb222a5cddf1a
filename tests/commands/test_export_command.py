"""``emoq export``: what it says, and what it puts on the hub."""

import json
import time
from unittest.mock import Mock

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError

from emoq_modules.commands.cli import main


@pytest.fixture(scope="module")
def run(tiny_results):
    """Stage 2 of a tiny run."""
    return tiny_results / "tiny/emoq/fold1-seed1234/stage2"


@pytest.fixture
def api(monkeypatch):
    """In the place of ``HfApi``, on a hub that has no such repository."""
    api = Mock()
    api.model_info.return_value = None
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api)
    return api


def asked(api):
    return [name for name, _, _ in api.method_calls]


def test_command_tells_what_it_has_written(run, tmp_path, capsys):
    out = tmp_path / "export"
    assert main(["export", str(run), str(out)]) == 0
    printed = capsys.readouterr().out
    assert "adapter/adapter_model.safetensors" in printed
    assert f'from_hparams("{out}")' in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_queries", "3"], "knows no --num_queries 3"),
        (["--private"], "--private goes with --push_to_hub"),
        (["--push_to_hub", "a/b/c"], "'a/b/c' is no name for the hub"),
    ],
)
def test_wrong_options_are_refused(options, message, run, tmp_path, capsys):
    out = tmp_path / "export"
    assert main(["export", str(run), str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_export_is_pushed_in_one_commit(api, run, tmp_path, capsys):
    out = tmp_path / "export"
    options = ["--push_to_hub", "me/emoq", "--private", "--license", "mit"]
    assert main(["export", str(run), str(out), *options]) == 0
    steps = ["model_info", "whoami", "create_repo", "upload_folder"]
    assert asked(api) == steps
    made = {"private": True, "exist_ok": True}
    api.create_repo.assert_called_once_with("me/emoq", **made)
    uploaded = api.upload_folder.call_args.kwargs
    assert uploaded["repo_id"] == "me/emoq"
    assert uploaded["folder_path"] == out
    assert "license: mit" in (out / "README.md").read_text()
    assert "Pushed to" in capsys.readouterr().out


def test_without_a_network_nothing_is_exported(run, tmp_path, no_hub, capsys):
    started = time.monotonic()
    out = tmp_path / "export"
    assert main(["export", str(run), str(out), "--push_to_hub", "me/x"]) == 2
    assert time.monotonic() - started < 3
    assert "hub does not answer" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("hub", "message"),
    [
        ({"whoami.side_effect": LocalTokenNotFoundError()}, "Nobody is logged"),
        (
            {"model_info.return_value": Mock(private=False)},
            "and is public",
        ),
    ],
)
def test_what_the_hub_would_not_take_is_not_exported(
    hub, message, api, run, tmp_path, capsys
):
    api.configure_mock(**hub)
    options = ["--push_to_hub", "me/x", "--private"]
    assert main(["export", str(run), str(tmp_path / "x"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert not {"create_repo", "upload_folder"} & {*asked(api)}


def test_upload_that_fails_leaves_the_export(api, run, tmp_path, capsys):
    api.upload_folder.side_effect = RuntimeError("413 too large")
    out = tmp_path / "export"
    assert main(["export", str(run), str(out), "--push_to_hub", "me/x"]) == 2
    message = capsys.readouterr().err
    assert "not on the hub" in message and "413 too large" in message
    assert json.loads((out / "contents.json").read_text())
