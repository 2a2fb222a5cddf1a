"""Both stages, end to end: results, resuming, the two ways to the frames."""

import json
import os
import re
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train
from emoq_modules import EmotionRecognizer
from emoq_modules.dataio.audio import read_audio
from emoq_modules.dataio.manifest_reader import read_manifest
from emoq_modules.evaluation.calibration import WAYS, fit_temperature
from emoq_modules.evaluation.embeddings import read_embeddings
from emoq_modules.evaluation.results import read_predictions
from emoq_modules.training import run_data, stages
from emoq_modules.training.checkpoints import TrainableCheckpointer
from tests.conftest import fork
from tests.corpus_folders import snapshot

STAGE1, STAGE2 = ("hparams/emoq_stage1.yaml", "hparams/emoq_stage2.yaml")
RUN = "tiny/emoq/fold1-seed1234"


def arguments(results, experiment=STAGE2, *options):
    return [
        *(experiment, "--preset", "tests/tiny.yaml"),
        *("--results_folder", str(results)),
        *options,
    ]


def newest_weights(stage_folder):
    """All trained weights of the last checkpoint, as one dict."""
    checkpointer = TrainableCheckpointer(stage_folder / "save", {})
    newest = checkpointer.find_checkpoint()
    return {
        f"{name}.{key}": value
        for name in ("fusion", "head", "decoder")
        if name in newest.paramfiles
        for key, value in load_file(newest.paramfiles[name]).items()
    }


def test_run_leaves_all_its_results(tiny_results):
    for stage in (1, 2):
        folder = tiny_results / RUN / f"stage{stage}"
        names = {path.name for path in folder.iterdir()}
        assert names >= {
            "results.json",
            "predictions.csv",
            "valid_predictions.csv",
            "test_embeddings.safetensors",
            "confusion_matrix.png",
            "training_curves.png",
            "train_log.txt",
            "env.log",
            "hyperparams.yaml",
        }
        results = json.loads((folder / "results.json").read_text())
        assert (results["corpus"], results["stage"]) == ("tiny", stage)
        assert results["n"] == 9
        stats = read_predictions(folder)
        assert stats.summarize("UA") == results["UA"]
        assert stats.dialogues == 9 * ["test dialogue"]
        manifest = tiny_results / "tiny/manifests/fold1/test.json"
        rows = json.loads(manifest.read_text())
        for column in ("speaker", "session"):
            expected = [rows[utterance][column] for utterance in stats.ids]
            assert getattr(stats, f"{column}s") == expected
        path = folder / "test_embeddings.safetensors"
        lengths = np.linalg.norm(read_embeddings(path, stats.ids), axis=1)
        np.testing.assert_allclose(lengths, np.ones(9), rtol=1e-5)
        valid = read_predictions(folder / "valid_predictions.csv")
        assert valid.summarize("UA") == results["valid"]["UA"]
        assert valid.dialogues == 6 * ["valid dialogue"]


def test_a_recognizer_is_calibrated_for_each_way_of_asking(
    tmp_path, tiny_results, monkeypatch
):
    monkeypatch.setattr(run_data, "WINDOW_S", 0.2)
    options = "--feature_store", "null"
    train.main(arguments(tmp_path, STAGE2, *stage_1_of(tiny_results), *options))
    source = tmp_path / RUN / "stage2/recognizer"
    recognizer = EmotionRecognizer.from_hparams(source)
    fitted, recognizer.hparams.temperature = recognizer.hparams.temperature, 1
    manifest = tmp_path / "tiny/manifests/fold1/valid.json"
    labels = recognizer.hparams.labels
    rows = read_manifest(manifest, labels, tmp_path / "data").values()
    assert all(row.text for row in rows)
    targets = [labels.index(row.emotion) for row in rows]
    given = {way: [] for way in WAYS}
    for row in rows:
        samples = read_audio(row.wav)
        start = (len(samples) - 3200) // 2
        for way, text, heard in zip(
            WAYS,
            (row.text, "", ""),
            (samples, samples, samples[start : start + 3200]),
            strict=True,
        ):
            found, *_ = recognizer.classify_batch(
                heard[None], texts=[text], speakers=[row.speaker]
            )
            given[way].append(found[0].numpy())
    expected = {way: fit_temperature(given[way], targets) for way in WAYS}
    assert fitted == pytest.approx(expected, rel=1e-2)
    assert len({round(value, 2) for value in expected.values()}) == 3


def test_stage_1_learns(tiny_results):
    results = tiny_results / RUN / "stage1" / "results.json"
    assert json.loads(results.read_text())["UA"] > 60  # chance is 33


def stage_1_of(results):
    """Has a stage 2 begin with the stage 1 of another results folder."""
    path = results / RUN / "stage1/emoq_former.safetensors"
    return "--fusion_weights", str(path)


def test_stage_2_starts_from_stage_1(tmp_path, tiny_results):
    # With a learning rate of 0 the EmoQ-Former stays what it was given.
    options = *stage_1_of(tiny_results), "--lr", "0", "--number_of_epochs", "1"
    train.main(arguments(tmp_path, STAGE2, *options))
    first = load_file(tiny_results / RUN / "stage1/emoq_former.safetensors")
    weights = newest_weights(tmp_path / RUN / "stage2")
    for name, value in first.items():
        assert torch.equal(weights[f"fusion.{name}"], value)


def test_frozen_weights_are_in_no_checkpoint(tiny_results):
    weights = newest_weights(tiny_results / RUN / "stage2")
    assert any("lora_A" in name for name in weights)
    assert all(re.search("fusion|projector|lora_", name) for name in weights)


def kill(after, options):
    """Trains, and is killed after so many batches."""
    batches = []

    def die(self, batch, outputs, loss, should_step):
        batches.append(batch)
        if len(batches) == after:
            os.kill(os.getpid(), signal.SIGKILL)

    stages.EmoQBrain.on_fit_batch_end = die
    train.main(options)


@pytest.mark.parametrize(("stage", "experiment"), [(1, STAGE1), (2, STAGE2)])
def test_killed_run_ends_as_if_it_had_never_been_stopped(
    tmp_path, tiny_results, stage, experiment
):
    often = ["--ckpt_interval_minutes", "0", "--ckpt_interval_steps", "2"]
    if stage == 2:
        often += stage_1_of(tiny_results)
    options = arguments(tmp_path, experiment, *often)
    process = fork(kill, 9, options)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    folder, whole = (
        results / RUN / f"stage{stage}" for results in (tmp_path, tiny_results)
    )
    assert not (folder / "results.json").exists()
    stopped = TrainableCheckpointer(folder / "save", {}).find_checkpoint()
    assert not stopped.meta["end-of-epoch"]
    train.main(options)
    resumed, expected = map(newest_weights, (folder, whole))
    assert resumed.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name
    found, predictions = (f / "predictions.csv" for f in (folder, whole))
    assert found.read_text() == predictions.read_text()


def test_frames_on_the_fly_give_the_same_result(tmp_path, tiny_results):
    train.main(arguments(tmp_path, STAGE1, "--feature_store", "null"))
    assert not (tmp_path / "feature_store").exists()
    stored = newest_weights(tiny_results / RUN / "stage1")
    for name, value in newest_weights(tmp_path / RUN / "stage1").items():
        torch.testing.assert_close(value, stored[name], atol=1e-5, rtol=1e-4)


def test_finished_run_started_again_changes_nothing(tiny_results):
    folder = tiny_results / RUN / "stage2"
    before = newest_weights(folder)
    predictions = (folder / "predictions.csv").read_text()
    train.main(arguments(tiny_results))
    after = newest_weights(folder)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert (folder / "predictions.csv").read_text() == predictions


def test_trained_run_is_tested_again_without_training(tiny_results):
    folder = tiny_results / RUN / "stage2"
    before = json.loads((folder / "results.json").read_text())
    (folder / "results.json").unlink()
    train.main(arguments(tiny_results, STAGE2, "--test_only"))
    after = json.loads((folder / "results.json").read_text())
    del before["seconds"], after["seconds"]
    assert after == before


def test_saved_configuration_repeats_the_run_alone(tmp_path, tiny_results):
    saved = tiny_results / RUN / "stage1/hyperparams.yaml"
    text = saved.read_text().replace(str(tiny_results), str(tmp_path))
    copy = tmp_path / "again.yaml"
    copy.write_text(text)
    train.main([str(copy)])
    expected = newest_weights(tiny_results / RUN / "stage1")
    for name, value in newest_weights(tmp_path / RUN / "stage1").items():
        assert torch.equal(value, expected[name])


def test_baseline_trains_and_leaves_its_results(tmp_path):
    hubert = (
        "{model_type: hubert, hidden_size: 16, num_hidden_layers: 3, "
        "num_attention_heads: 2, intermediate_size: 32, "
        "conv_dim: [8, 8, 8, 8, 8, 8, 8], num_conv_pos_embeddings: 4, "
        "num_conv_pos_embedding_groups: 2}"
    )
    train.main(
        arguments(
            tmp_path,
            STAGE1,
            *("--preset", "hparams/presets/baseline_hubert.yaml"),
            *("--audio_source", hubert, "--audio_dim", "16"),
            *("--number_of_epochs", "1"),
        )
    )
    folder = tmp_path / "tiny/baseline_hubert/fold1-seed1234/stage1"
    results = json.loads((folder / "results.json").read_text())
    assert (results["variant"], results["n"]) == ("baseline_hubert", 9)
    shapes = {
        name: tuple(value.shape)
        for name, value in newest_weights(folder).items()
    }
    assert shapes == {
        "fusion.scores": (4,),
        "head.weight": (3, 16),
        "head.bias": (3,),
    }


def test_a_debug_run_leaves_a_whole_one_as_it_is(tiny_results):
    before = snapshot(tiny_results / RUN)
    train.main(arguments(tiny_results, STAGE2, "--debug"))
    assert snapshot(tiny_results / RUN) == before
    debugged = tiny_results / RUN.replace("/emoq/", "/emoq-debug/")
    assert (debugged / "stage2/results.json").exists()
