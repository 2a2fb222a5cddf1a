"""Every preset fits the experiments, and the defaults are the paper's."""

from functools import cache
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from torch.nn import functional as F
from transformers import AutoTokenizer

from emoq_modules.commands.reproduce_runs import read_table
from emoq_modules.dataio.datasets import TextInputs
from emoq_modules.training.configuration import (
    StageRun,
    change,
    merge_presets,
)
from emoq_modules.training.run_folder import differences

EXPERIMENTS = [f"hparams/emoq_stage{stage}.yaml" for stage in (1, 2)]
PRESETS = sorted(
    str(path)
    for folder in ("hparams/presets", "recipes")
    for path in Path(folder).rglob("*.yaml")
    if path.parent.name != "table"  # test_table_prepare.py has them
)
MELD = "recipes/MELD/meld7.yaml"
# What a preset comes after.
AFTER = {"recipes/EMODB/tuning.yaml": ["recipes/EMODB/emodb7.yaml"]}
# Of corpora whose speakers have codes in the place of names; IEMOCAP's first.
CODED = [p for p in PRESETS if p.startswith("recipes/IEMOCAP/")]
CODED += [p for p in PRESETS if p.startswith("recipes/EMODB/")]
TABLE_4 = [row for row in read_table(4)["rows"] if row["run"]]


@cache
def composed(experiment, *presets, **options):
    options = change("data_folder: /data", **options)
    presets = [p for name in presets for p in (*AFTER.get(name, []), name)]
    return StageRun(merge_presets(experiment, presets, options))


def test_a_fresh_classifier_tells_embeddings_apart():
    torch.manual_seed(0)
    run = composed(EXPERIMENTS[0], "hparams/presets/offline.yaml")
    head = run.load("head")["head"].eval()
    width = head[0].normalized_shape[0]
    embeddings = F.normalize(torch.randn(500, width), dim=-1)
    # Without the norm before it they differ by 0.02.
    assert head(embeddings).std(dim=0).mean() > 0.1


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_a_preset_fits_both_experiments_which_agree_on_the_corpus(preset):
    presets = [preset] if preset else []
    first, second = (composed(name, *presets) for name in EXPERIMENTS)
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


@pytest.mark.parametrize("presets", [[], *([preset] for preset in PRESETS)])
def test_soft_prompts_change_their_length_at_a_rate_of_their_own(presets):
    stage2 = YAML().load(composed(EXPERIMENTS[1], *presets).hparams_yaml)
    rates = stage2["learning_rates"]
    if "decoder.projector" in rates:  # text_only.yaml has none
        assert rates["decoder.projector.scale"] >= 0.001


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_without_a_preset_it_is_meld_with_seven_classes(experiment):
    alone, meld = composed(experiment), composed(experiment, MELD)
    assert differences(meld.hparams_yaml, alone.hparams_yaml) == {}


def rendered(llm, *presets):
    """What the LLM reads of an utterance, and of the turn before it."""
    hparams = composed(EXPERIMENTS[1], *presets, context_turns=1).hparams
    prompt = hparams["prompt"].bind(
        AutoTokenizer.from_pretrained(llm),
        hparams["labels"],
        words=hparams["words"],
    )
    inputs = TextInputs(
        prompt=prompt,
        speaker_in_prompt=hparams["speaker_in_prompt"],
        context_turns=1,
    )
    ids = inputs.prompt_ids("It is late", "Ses01F", [("Ses01M", "Leave me")])
    return prompt.tokenizer.decode(sum(ids, []))


@pytest.mark.parametrize("preset", [MELD, *CODED])
def test_names_are_told_to_the_llm_and_codes_are_not(llm, preset):
    text = rendered(llm, preset)
    assert "It is late" in text and "Leave me" in text
    assert ("Speaker: Ses01F" in text) == (preset == MELD)
    assert ("Ses01M: Leave me" in text) == (preset == MELD)
    assert ("Ses" in text) == (preset == MELD)


@pytest.mark.parametrize("row", TABLE_4, ids=lambda row: row["name"])
def test_the_row_of_the_audio_alone_tells_neither_words_nor_name(llm, row):
    text = rendered(llm, MELD, *row["run"]["presets"])
    audio_only = row["name"] == "Audio-only"
    assert ("Ses0" not in text) == audio_only
    assert ("It is late" not in text) == audio_only
    assert ("Voice:" in text) == (row["name"] != "Text-only")


def test_the_voice_alone_has_no_name(llm):
    text = rendered(llm, MELD, "hparams/presets/emoqformer_audio.yaml")
    assert "Voice:" in text
    assert "Ses0" not in text and "It is late" not in text


def test_the_llm_says_the_papers_word_for_sad_and_results_keep_the_label(llm):
    assert "angry, happy, neutral, sadness." in rendered(llm, CODED[0])
    for preset in CODED:
        labels = composed(EXPERIMENTS[1], preset).hparams["labels"]
        assert "sad" in labels and "sadness" not in labels


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
