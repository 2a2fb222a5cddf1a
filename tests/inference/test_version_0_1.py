"""What version 0.1.0 has written goes on loading, and computes the same."""

import pydoc
from pathlib import Path

import pytest
import torch

from emoq_modules import EmotionRecognizer
from emoq_modules.errors import ConfigurationError
from emoq_modules.training.configuration import plan_runs
from emoq_modules.training.run_folder import check_settings

EXPORT = Path(__file__).with_name("export_0_1_0")
# All that its YAMLs, presets and exports name, but for the public names.
NAMES = """
backbones.load_configuration
backbones.load_tokenizer
checkpoints.History
checkpoints.RandomState
checkpoints.TrainableCheckpointer
checkpoints.load_trainable
checkpoints.save_trainable
dataio.training_labels
decoder_weights.load_adapter
decoder_weights.load_projector
losses.inverse_frequency_weights
offline.build_llm
offline.build_text_encoder
train_loggers.RunLogger
""".split()


MOVED = {
    "emoq_modules.lobes.backbones.": "emoq_modules.backbones.",
    "emoq_modules.lobes.losses.": "emoq_modules.losses.",
    "emoq_modules.training.checkpoints.": "emoq_modules.checkpoints.",
    "emoq_modules.dataio.datasets.": "emoq_modules.dataio.",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_its_yamls_is_found_as_hyperpyyaml_looks_for_it(name):
    found = pydoc.locate(f"emoq_modules.{name}")
    assert callable(found)
    assert found.__name__ == name.split(".")[1]


def test_its_runs_are_told_from_runs_with_other_settings(tmp_path):
    """A run that it began goes on: only where things are has changed."""
    options = f"results_folder: {tmp_path}\ndata_folder: /data"
    (run,) = plan_runs("hparams/emoq_stage1.yaml", [], options)
    for now, before in MOVED.items():
        assert now in run.hparams_yaml
        written = run.hparams_yaml.replace(now, before)
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "hyperparams.yaml").write_text(written)
        (run.folder / "results.json").touch()
        check_settings(run)
    (run.folder / "hyperparams.yaml").write_text(
        written.replace("temperature: 0.07", "temperature: 0.7")
    )
    with pytest.raises(ConfigurationError, match="temperature was '0.7'"):
        check_settings(run)


def test_its_presets_give_the_run_that_todays_names_give(tmp_path):
    hparams = []
    for place in ("lobes.small_backbones", "offline"):
        preset = tmp_path / f"{place}.yaml"
        preset.write_text(
            f"text_encoder: !apply:emoq_modules.{place}.build_text_encoder\n"
            "    folder: here\n    texts: [Oh no!]"
        )
        (run,) = plan_runs(
            "hparams/emoq_stage1.yaml", [preset], "data_folder: /data"
        )
        hparams.append(run.hparams_yaml)
    assert hparams[0] == hparams[1]


def test_its_export_gives_the_posteriors_that_it_gave():
    recognizer = EmotionRecognizer.from_hparams(str(EXPORT))
    times = torch.arange(16000) / 16000
    wavs = torch.stack(
        [0.3 * torch.sin(2 * torch.pi * f * times) for f in (150, 300, 450)]
    )
    posteriors, score, _, label = recognizer.classify_batch(
        wavs,
        torch.tensor([1.0, 0.5, 0.8]),
        texts=["stop he said", "great he said", ""],
        speakers=["Ross", None, "Rachel"],
    )
    # Printed by version 0.1.0.
    expected = [
        [0.33515993, 0.24552627, 0.41931379],
        [0.35443494, 0.25467393, 0.39089108],
        [0.31383371, 0.23551002, 0.45065629],
    ]
    # At the one temperature that it fitted, which was for the score alone.
    scaled = (torch.tensor(expected).log() / 19.99998616897748).softmax(dim=1)
    torch.testing.assert_close(posteriors, scaled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        score, torch.tensor([0.33755776, 0.33625627, 0.33896652])
    )
    assert label == ["sad", "sad", "sad"]
