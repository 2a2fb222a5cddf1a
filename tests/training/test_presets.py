"""Every preset fits the experiments, and the defaults are the paper's."""

from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from emoq_modules.training.configuration import StageRun, merge_presets
from emoq_modules.training.run_folder import differences

EXPERIMENTS = [f"hparams/emoq_stage{stage}.yaml" for stage in (1, 2)]
PRESETS = sorted(
    str(path)
    for folder in ("hparams/presets", "recipes")
    for path in Path(folder).rglob("*.yaml")
)
MELD = "recipes/MELD/meld7.yaml"


@cache
def composed(experiment, preset=""):
    presets = [preset] * bool(preset)
    return StageRun(merge_presets(experiment, presets, "data_folder: /data"))


@pytest.mark.parametrize("preset", ["", *PRESETS])
def test_a_preset_fits_both_experiments_which_agree_on_the_corpus(preset):
    first, second = (composed(name, preset) for name in EXPERIMENTS)
    assert "!ref" not in first.hparams_yaml + second.hparams_yaml
    first, second = first.hparams, second.hparams
    assert (first["stage"], second["stage"]) == (1, 2)
    assert len(first["labels"]) >= 4
    for key in ("corpus", "labels", "folds", "manifest_folder", "variant"):
        assert first[key] == second[key]
    if second["fusion_weights"] is not None:
        assert first["fusion_weights"] == second["fusion_weights"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_change_of_the_loss_is_a_variant_of_its_own(experiment):
    presets = [preset for preset in PRESETS if "/loss_" in preset]
    assert presets
    for preset in presets:
        variant = composed(experiment, preset).hparams["variant"]
        assert variant == Path(preset).stem


@pytest.mark.parametrize("preset", ["", *PRESETS])
def test_soft_prompts_change_their_length_at_a_rate_of_their_own(preset):
    stage2 = YAML().load(composed(EXPERIMENTS[1], preset).hparams_yaml)
    rates = stage2["learning_rates"]
    if "decoder.projector" in rates:  # text_only.yaml has none
        assert rates["decoder.projector.scale"] >= 0.001


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_without_a_preset_it_is_meld_with_seven_classes(experiment):
    alone, meld = composed(experiment), composed(experiment, MELD)
    assert differences(meld.hparams_yaml, alone.hparams_yaml) == {}


def test_the_layers_that_lora_adapts_are_an_option():
    options = "data_folder: /data\nlora_target_modules: [q_proj, v_proj]\n"
    experiment = YAML().load(merge_presets(EXPERIMENTS[1], [], options))
    adapted = experiment["decoder"]["lora"]["target_modules"]
    assert adapted == ["q_proj", "v_proj"]


def test_defaults_are_the_values_of_the_paper():
    first, second = (
        YAML().load(composed(name).hparams_yaml) for name in EXPERIMENTS
    )
    assert first["mal"]["scl"]["temperature"] == 0.07
    assert first["mal"]["focal"]["gamma"] == 2.0
    assert first["mal"]["balance"] == 1.0
    assert second["decoder"]["lora"]["r"] == 16
    assert second["decoder"]["lora"]["lora_dropout"] == 0.1
    assert second["llm"] == "Qwen/Qwen2.5-7B-Instruct"
    for experiment in (first, second):
        assert experiment["audio_source"] == "facebook/hubert-large-ll60k"
        assert experiment["text_encoder"] == "FacebookAI/roberta-base"
        rates = experiment["learning_rates"]
        rates.pop("decoder.projector.scale", None)
        assert set(rates.values()) == {1e-5}
        assert experiment["train_loader"]["batch_size"] == 8
        assert str(experiment["opt_class"].tag) == "!name:torch.optim.AdamW"
