"""The models of the paper, built without weights, have their known sizes."""

import pytest

from emoq_modules.errors import EmoQError
from emoq_modules.training.describe import describe, model_parts


def sizes(stage, *presets):
    parts = model_parts(f"hparams/emoq_stage{stage}.yaml", presets)
    return {
        name: sum(parameter.numel() for parameter in parameters)
        for name, parameters in parts.items()
    }


def test_small_backbones_built_on_the_spot_are_described_too(tiny_results):
    options = f"results_folder: {tiny_results}"
    for stage, part in ((1, "head"), (2, "LoRA")):
        told = describe(
            f"hparams/emoq_stage{stage}.yaml", ["tests/tiny.yaml"], options
        )
        assert part in told


def test_corpus_that_is_not_prepared_is_named(tmp_path):
    with pytest.raises(EmoQError, match="prepare the corpus, or train, first"):
        describe(
            "hparams/emoq_stage2.yaml",
            ["tests/tiny.yaml"],
            f"results_folder: {tmp_path}",
        )


@pytest.fixture(scope="module")
def paper():
    return sizes(2)


def test_backbones_have_their_published_sizes(paper):
    # As transformers counts the published models' parameters.
    assert paper["audio encoder"] == 315_438_720  # HuBERT-large
    assert paper["llm"] == 7_615_616_512  # Qwen2.5-7B


def test_emoq_former_is_roberta_base_and_what_the_queries_add(paper):
    dim, inner, layers, queries, heads = 768, 3072, 12, 32, 8
    roberta = 124_055_040  # roberta-base without its pooler
    feed_forward = 2 * dim * inner + inner + dim + 2 * dim
    attention = 4 * (dim * dim + dim) + 2 * dim
    added = (
        layers * feed_forward  # the queries' own
        - feed_forward  # the text's, in the last layer
        + layers // 2 * attention  # to the audio
        + queries * dim
        + 2 * dim  # their norm
        + 2 * 1024  # the norm of the frames
        + 1024 * dim
        + dim  # audio projection
        + dim * dim
        + dim
        + dim * heads  # pooling
    )
    assert paper["fusion"] == roberta + added


def test_lora_has_the_size_worked_out_by_hand(paper):
    # r (in + out) for each projection: query, key, value, output; gate, up,
    # down; 28 layers of Qwen2.5-7B, whose keys and values have 4 heads of 128.
    hidden, keys, inner = 3584, 4 * 128, 18944
    per_layer = 16 * (
        2 * (hidden + hidden) + 2 * (hidden + keys) + 3 * (hidden + inner)
    )
    assert paper["LoRA"] == 28 * per_layer == 40_370_176


def test_small_preset_fits_its_backbones():
    small = sizes(2, "hparams/presets/small.yaml")
    assert small["audio encoder"] == 94_371_712  # HuBERT-base
    assert small["llm"] == 494_032_768  # Qwen2.5-0.5B


@pytest.mark.parametrize(
    ("presets", "layers", "dim"),
    [(["baseline_hubert"], 24, 1024), (["baseline_hubert", "small"], 12, 768)],
)
def test_baseline_trains_a_weight_a_layer_and_a_linear_head(
    presets, layers, dim
):
    parts = sizes(1, *(f"hparams/presets/{p}.yaml" for p in presets))
    assert set(parts) == {"audio encoder", "fusion", "head"}
    assert parts["fusion"] == layers + 1
    assert parts["head"] == 7 * dim + 7


def test_description_names_parts_sizes_and_what_trains():
    text = describe("hparams/emoq_stage2.yaml")
    llm = next(line for line in text.splitlines() if line.startswith("llm"))
    assert llm.split() == ["llm", "7,615,616,512", "0"]
    assert "LoRA                  40,370,176      40,370,176" in text
    assert "A checkpoint holds 939 MB of weights" in text
