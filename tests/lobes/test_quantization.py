"""Stage 2 with a base in four bits: what trains, stays and is written."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

import train
from emoq_modules import EmotionRecognizer
from emoq_modules.dataio.manifest_reader import read_manifest
from emoq_modules.errors import BackboneError, ExportError
from emoq_modules.evaluation.results import read_predictions
from emoq_modules.inference.export import export_recognizer
from emoq_modules.lobes import llm as llm_loading
from emoq_modules.lobes.llm import BYTES_PER_WEIGHT
from emoq_modules.training.describe import describe
from tests.lobes.test_decoder import DIM, TARGETS, encode, make_decoder
from tests.training.test_training import (
    RUN,
    STAGE2,
    arguments,
    newest_weights,
    stage_1_of,
)

bnb = pytest.importorskip("bitsandbytes")

FOLDER = f"{RUN}/stage2"
QWEN = {
    "model_type": "qwen2",
    "vocab_size": 2000,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
}


def quantized(llm, source=QWEN, **options):
    return make_decoder(source, tokenizer=llm, quantization="nf4", **options)


def packed(decoder):
    return {
        name: parameter
        for name, parameter in decoder.named_parameters()
        if isinstance(parameter, bnb.nn.Params4bit)
    }


@pytest.mark.parametrize("from_file", [True, False])
def test_every_projection_of_the_llm_is_in_four_bits(llm, from_file):
    decoder = quantized(llm, llm if from_file else QWEN)
    config = decoder.llm.config
    assert len(packed(decoder)) == 7 * config.num_hidden_layers
    for name, parameter in packed(decoder).items():
        assert parameter.dtype == torch.uint8, name
        assert parameter.quant_state.quant_type == "nf4"
        assert parameter.quant_state.nested  # its scales are quantized too
        assert not parameter.requires_grad
    embeddings = decoder.llm.get_input_embeddings().weight
    assert embeddings.dtype == torch.float32
    assert decoder.llm.get_output_embeddings().weight.dtype == torch.float32


def test_both_ways_give_the_same_numbers(llm, tmp_path):
    """Quantized in memory, a model is what it is when read from a file."""
    plain = make_decoder(QWEN, lora=None, tokenizer=llm)
    plain.llm.save_pretrained(tmp_path)
    read = quantized(llm, str(tmp_path), lora=None)
    built = quantized(llm, lora=None)
    found = zip(packed(read).items(), packed(built).items(), strict=True)
    for (name, one), (other_name, other) in found:
        assert name == other_name
        assert torch.equal(one, other)
    built.projector.load_state_dict(read.projector.state_dict())
    embeddings = torch.randn(3, DIM)
    with torch.no_grad():
        one, other = (
            each.posteriors(embeddings, encode(each)) for each in (read, built)
        )
    assert torch.equal(one, other)


def test_a_weight_takes_as_many_bytes_as_is_said(llm):
    decoder = quantized(llm)
    weights = packed(decoder).values()
    state = [parameter.quant_state for parameter in weights]
    size = sum(parameter.nbytes for parameter in weights) + sum(
        s.absmax.nbytes + s.state2.absmax.nbytes for s in state
    )
    number = sum(s.shape.numel() for s in state)
    assert size / number == pytest.approx(BYTES_PER_WEIGHT, rel=0.01)


def test_adapter_learns_and_the_base_stays(llm):
    decoder = quantized(llm).train()
    before = {name: p.clone() for name, p in packed(decoder).items()}
    trained = [p for p in decoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.003)
    embeddings = torch.nn.functional.normalize(torch.randn(3, DIM), dim=-1)
    losses = []
    for _ in range(6):
        loss = decoder.loss(embeddings, encode(decoder), TARGETS)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    adapted = [n for n, p in decoder.named_parameters() if p.requires_grad]
    assert {"projector.scale"} < set(adapted)
    assert sum("lora_B" in name for name in adapted) == len(before)
    for name, parameter in packed(decoder).items():
        assert torch.equal(parameter, before[name]), name


def test_gradient_checkpointing_changes_no_gradient(llm):
    found = []
    for checkpointing in (False, True):
        decoder = quantized(llm, gradient_checkpointing=checkpointing).train()
        torch.manual_seed(1)
        decoder.loss(torch.ones(3, DIM), encode(decoder), TARGETS).backward()
        found.append(
            [p.grad for p in decoder.parameters() if p.grad is not None]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_training_goes_on_after_an_evaluation(llm):
    decoder = quantized(llm)
    batch = torch.ones(3, DIM), encode(decoder), TARGETS

    def gradient():
        torch.manual_seed(1)
        weight = decoder.projector.linear.weight
        return torch.autograd.grad(decoder.train().loss(*batch), weight)[0]

    before = gradient()
    with torch.no_grad():
        decoder.eval().posteriors(*batch[:2])
    assert torch.equal(gradient(), before)
    assert before.any()


def options(results, tiny_results, *others):
    """Arguments of a run of stage 2, whose stage 1 is the shared run's."""
    return arguments(
        results,
        STAGE2,
        *stage_1_of(tiny_results),
        *("--llm_quantization", "nf4", "--number_of_epochs", "2"),
        *others,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_results):
    """The results folder."""
    results = tmp_path_factory.mktemp("results")
    train.main(options(results, tiny_results))
    return results


def test_run_leaves_a_recognizer_of_the_same_posteriors(results):
    folder = results / FOLDER / "recognizer"
    recognizer = EmotionRecognizer.from_hparams(str(folder))
    assert packed(recognizer.mods.decoder)
    weights = newest_weights(results / FOLDER)
    assert all(re.search("fusion|projector|lora_", name) for name in weights)
    assert_gives_the_predictions(recognizer, results)


def assert_gives_the_predictions(recognizer, results):
    rows = read_manifest(
        results / "tiny/manifests/fold1/test.json",
        ["angry", "happy", "sad"],
        results / "data",
    )
    recognizer.hparams.temperature = 1  # as in training
    found = [
        recognizer.classify_file(row["wav"], row["text"], row["speaker"])[0]
        for row in rows.values()
    ]
    torch.testing.assert_close(
        torch.cat(found),
        torch.stack(read_predictions(results / FOLDER).posteriors),
        atol=1e-4,
        rtol=0,
    )


def test_stopped_run_ends_as_if_it_had_never_been(
    results, tiny_results, tmp_path
):
    class Stopped(Exception):
        pass

    def stop(self, *arguments):
        if self.hparams.stage == 2 and self.optimizer_step == 5:
            raise Stopped

    every = ("--ckpt_interval_minutes", "0", "--ckpt_interval_steps", "2")
    with pytest.MonkeyPatch.context() as patch:
        brain = sys.modules["emoq_modules.training.brain"].EmoQBrain
        patch.setattr(brain, "on_fit_batch_end", stop)
        with pytest.raises(Stopped):
            train.main(options(tmp_path, tiny_results, *every))
    assert not (tmp_path / FOLDER / "results.json").exists()
    train.main(options(tmp_path, tiny_results, *every))
    whole, resumed = (
        json.loads((folder / FOLDER / "results.json").read_text())
        for folder in (results, tmp_path)
    )
    assert resumed["UA"] == whole["UA"]
    one, other = (
        torch.stack(read_predictions(folder / FOLDER).posteriors)
        for folder in (results, tmp_path)
    )
    assert torch.equal(one, other)


def test_export_names_the_base_in_four_bits(results, tmp_path):
    export = export_recognizer(results / FOLDER, tmp_path / "emoq")
    tree = YAML().load((export / "hyperparams.yaml").read_text())
    assert tree["decoder"]["quantization"] == "nf4"
    # The base goes along as it is, and is quantized when it is loaded.
    base = load_file(Path(export, "llm/model.safetensors"))
    assert not any(t.dtype == torch.uint8 for t in base.values())
    recognizer = EmotionRecognizer.from_hparams(str(export))
    assert_gives_the_predictions(recognizer, results)


def test_adapter_is_not_merged_into_a_base_it_was_not_trained_on(
    results, tmp_path
):
    with pytest.raises(ExportError, match="4 bits.*without --merge"):
        export_recognizer(results / FOLDER, tmp_path / "emoq", merged=True)
    assert not (tmp_path / "emoq").exists()


def test_description_counts_weights_and_not_bytes():
    presets = "hparams/presets/small.yaml", "hparams/presets/qlora.yaml"
    assert describe(STAGE2, presets) == describe(STAGE2, presets[:1])


def test_what_is_missing_is_told(llm, monkeypatch):
    with pytest.raises(ValueError, match="nf4 or null; it is 'int8'"):
        make_decoder(llm, quantization="int8")
    monkeypatch.setattr(llm_loading, "find_spec", lambda name: None)
    with pytest.raises(BackboneError, match=r"pip install bitsandbytes"):
        quantized(llm, llm)
