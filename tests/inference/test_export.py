"""An export loads elsewhere, and gives the posteriors of the run."""

import multiprocessing
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from speechbrain.inference.interfaces import foreign_class
from speechbrain.utils.fetching import FetchConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from emoq_modules import EmotionRecognizer
from emoq_modules.commands.cli import main
from emoq_modules.errors import (
    BackboneError,
    ExportError,
    SourceError,
    UnsafeYAMLError,
)
from emoq_modules.evaluation.calibration import (
    apply_temperature,
    fit_temperature,
)
from emoq_modules.evaluation.results import read_predictions
from emoq_modules.inference import export as export_module
from emoq_modules.inference.export import export_recognizer
from tests.conftest import flip_a_byte
from tests.fake_hub import COMMIT, Hub
from tests.lobes.test_audio_encoder import save_tiny

LABELS = ["angry", "happy", "sad"]
ABLATIONS = [
    *("text_only", "without_emoqformer", "audio_only", "mean_of_frames"),
    *("emoqformer_audio", "emoqformer_text"),
]


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """An export, never to be changed."""
    return export_recognizer(run, tmp_path_factory.mktemp("export") / "emoq")


@pytest.fixture
def export(exported, tmp_path):
    """A copy of an export, to be changed."""
    return shutil.copytree(exported, tmp_path / "export")


@pytest.fixture(scope="module")
def merged(run, tmp_path_factory):
    """An export with LoRA merged into the LLM."""
    return export_recognizer(
        run, tmp_path_factory.mktemp("merged") / "emoq", merged=True
    )


def assert_gives_the_predictions(recognizer, rows, run):
    stats = read_predictions(run)
    fitted = recognizer.hparams.temperature["transcript"]
    scaled = torch.from_numpy(apply_temperature(stats.posteriors, fitted))
    for name, expected in zip(stats.ids, scaled.float(), strict=True):
        row = rows[name]
        item = row["wav"], row["text"], row["speaker"]
        posteriors = recognizer.classify_file(*item)[0][0]
        torch.testing.assert_close(posteriors, expected, atol=1e-4, rtol=0)


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def edit(folder, old, new):
    path = folder / "hyperparams.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_moved_and_with_its_run_deleted_it_gives_the_predictions(
    run, rows, tmp_path, no_hub, monkeypatch
):
    fold = shutil.copytree(run.parent, tmp_path / "fold")
    out = export_recognizer(fold, tmp_path / "export")
    shutil.rmtree(fold)
    moved = out.rename(tmp_path / "moved")
    recognizer = EmotionRecognizer.from_hparams(moved)
    assert_gives_the_predictions(recognizer, rows, run)
    monkeypatch.chdir(tmp_path)
    EmotionRecognizer.from_hparams("moved")
    texts = (p.read_text() for p in moved.rglob("*.[jymt]*") if p.is_file())
    assert not any(str(tmp_path) in text for text in texts)


@pytest.mark.parametrize("variant", ABLATIONS)
def test_every_ablation_can_be_exported(variant, train_tiny, rows, tmp_path):
    has_fusion = "emoqformer_" in variant
    no_stage1 = "--fusion_weights null --pretrainer null".split()
    run = train_tiny(
        *("--preset", f"hparams/presets/{variant}.yaml"),
        *("--number_of_epochs", "1", *no_stage1 * has_fusion),
        *("--words", "{happy: sad, sad: happy}"),
        variant=variant,
    )
    for merged in (False, True):
        out = export_recognizer(run, tmp_path / "export", merged=merged)
        recognizer = EmotionRecognizer.from_hparams(out)
        assert_gives_the_predictions(recognizer, rows, run)
        assert (out / "fusion.safetensors").exists() == has_fusion
        has_projector = variant != "text_only"
        assert (out / "projector.safetensors").exists() == has_projector


@pytest.mark.parametrize(
    ("family", "layer"), [("whisper", "all"), ("wav2vec2-bert", "[1, 2]")]
)
def test_encoder_of_any_family_goes_along_and_need_not_be_trusted(
    family, layer, train_tiny, rows, tmp_path
):
    source = save_tiny(tmp_path / "encoder", family)
    preset = tmp_path / "encoder.yaml"
    preset.write_text(
        f"audio_source: {source}\naudio_layer: {layer}\naudio_dim: 32\n"
        "audio_encoder: !new:emoq_modules.HuggingFaceEncoder "
        "{source: !ref <audio_source>, layer: !ref <audio_layer>}\n"
    )
    run = train_tiny(
        *("--preset", "hparams/presets/end_to_end.yaml"),
        *("--preset", str(preset), "--number_of_epochs", "1"),
        variant="end_to_end",
    )
    folder = export_recognizer(run, tmp_path / "export")
    for path in (tmp_path / "encoder", run / "recognizer"):
        shutil.rmtree(path)
    recognizer = EmotionRecognizer.from_hparams(folder)
    assert_gives_the_predictions(recognizer, rows, run)


def test_weights_are_safetensors_and_text_and_nothing_else(exported, merged):
    for folder in (exported, merged):
        suffixes = {p.suffix for p in folder.rglob("*") if p.is_file()}
        assert suffixes == {
            *(".safetensors", ".json", ".yaml", ".txt", ".md", ".jinja"),
            ".py",
        }
        (code,) = folder.rglob("*.py")
        assert code.name == "custom_interface.py"


def test_speechbrain_loads_it_as_a_foreign_class(rows, run, export):
    foreign = foreign_class(
        str(export),
        pymodule_file="custom_interface.py",
        classname="EmotionRecognizer",
        overrides={"pretrained_path": str(export)},
    )
    assert_gives_the_predictions(foreign, rows, run)


def test_peft_itself_loads_the_adapter(exported):
    recognizer = EmotionRecognizer.from_hparams(exported)
    base = AutoModelForCausalLM.from_pretrained(exported / "llm")
    model = PeftModel.from_pretrained(base, exported / "adapter").eval()
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        ours = recognizer.mods.decoder.llm(tokens).logits
        theirs = model(tokens).logits
        with model.disable_adapter():
            without = model(tokens).logits
    torch.testing.assert_close(theirs, ours)
    assert (without - ours).abs().max() > 1e-3


def test_merged_llm_is_loaded_by_transformers(exported, merged):
    assert not (merged / "adapter").exists()
    names = load_file(merged / "llm/model.safetensors").keys()
    assert not any("lora" in name or "base_layer" in name for name in names)
    tokenizer = AutoTokenizer.from_pretrained(merged / "llm")
    tokens = tokenizer("great yes he said", return_tensors="pt").input_ids
    recognizer = EmotionRecognizer.from_hparams(exported)
    with torch.no_grad():
        torch.testing.assert_close(
            AutoModelForCausalLM.from_pretrained(merged / "llm")(tokens).logits,
            recognizer.mods.decoder.llm(tokens).logits,
            atol=1e-5,
            rtol=1e-4,
        )


def load_without_peft(folder):
    """In a process of its own: as where only EmoQ's modules are imported."""
    for name in list(sys.modules):
        if name.split(".")[0] in ("emoq_modules", "peft", "train"):
            del sys.modules[name]
    sys.modules["peft"] = None
    from emoq_modules import EmotionRecognizer

    EmotionRecognizer.from_hparams(folder)


def test_merged_export_is_loaded_where_there_is_no_peft(merged, exported):
    context = multiprocessing.get_context("fork")
    for folder, code in ((merged, 0), (exported, 1)):
        process = context.Process(target=load_without_peft, args=(folder,))
        process.start()
        process.join(60)
        assert process.exitcode == code


def test_temperature_labels_and_prompt_are_those_of_the_run(run, exported):
    valid = read_predictions(run / "valid_predictions.csv")
    hparams = EmotionRecognizer.from_hparams(exported).hparams
    assert hparams.temperature["transcript"] == pytest.approx(
        fit_temperature(valid.posteriors, valid.targets)
    )
    its_own = EmotionRecognizer.from_hparams(run / "recognizer").hparams
    assert its_own.temperature == hparams.temperature
    assert hparams.labels == LABELS
    assert (exported / "labels.txt").read_text().split() == LABELS
    assert "Voice: <AUDIO>" in (exported / "prompt.txt").read_text()


@pytest.mark.parametrize(
    ("fitted", "why"),
    [
        ("", "a version of EmoQ trained it that did not"),
        (
            "temperature: {transcript: 1.0}\n",
            "all validation utterances are recognized",
        ),
    ],
)
def test_what_was_not_calibrated_is_said_to_be(
    fitted, why, run, tmp_path, caplog
):
    copy = shutil.copytree(run, tmp_path / "run")
    settings = copy / "recognizer/hyperparams.yaml"
    text, count = re.subn(
        r"temperature:\n(  .*\n)+", fitted, settings.read_text()
    )
    assert count == 1
    settings.write_text(text)
    out = export_recognizer(copy, tmp_path / "export")
    found = YAML().load(out / "hyperparams.yaml").get("temperature", {})
    assert set(found.values()) <= {1.0}
    assert f"not calibrated: {why}" in caplog.text
    assert "Not calibrated" in (out / "README.md").read_text()


def test_hub_name_downloads_what_is_needed_and_nothing_else(
    exported, rows, run, tmp_path, use_hub
):
    files = files_of(exported)
    server = Hub({**files, "pytorch_model.bin": b"x"})
    use_hub(server.url)
    config = FetchConfig(huggingface_cache_dir=str(tmp_path))
    recognizer = EmotionRecognizer.from_hparams(
        "someone/model", fetch_config=config
    )
    assert_gives_the_predictions(recognizer, rows, run)
    needless = {"README.md", "custom_interface.py"}
    assert sorted(server.downloaded) == sorted(files.keys() - needless)
    # From then on the hub is not needed.
    server.server.shutdown()
    use_hub("http://127.0.0.1:9")
    EmotionRecognizer.from_hparams("someone/model", fetch_config=config)


def test_interrupted_download_is_completed(exported, tmp_path, use_hub):
    files = files_of(exported)
    use_hub(Hub(files).url)
    config = FetchConfig(huggingface_cache_dir=str(tmp_path))
    EmotionRecognizer.from_hparams("someone/model", fetch_config=config)
    snapshot = tmp_path / f"models--someone--model/snapshots/{COMMIT}"
    (snapshot / "projector.safetensors").unlink()
    offline = FetchConfig(
        huggingface_cache_dir=str(tmp_path), allow_network=False
    )
    with pytest.raises(SourceError, match="projector.safetensors is missing"):
        EmotionRecognizer.from_hparams("someone/model", fetch_config=offline)
    EmotionRecognizer.from_hparams("someone/model", fetch_config=config)


def test_a_damaged_download_is_made_anew_as_the_message_says(
    exported, tmp_path, use_hub
):
    use_hub(Hub(files_of(exported)).url)
    config = FetchConfig(huggingface_cache_dir=str(tmp_path))
    EmotionRecognizer.from_hparams("someone/model", fetch_config=config)
    snapshot = tmp_path / f"models--someone--model/snapshots/{COMMIT}"
    flip_a_byte(snapshot / "fusion.safetensors")
    with pytest.raises(SourceError, match="fusion.safetensors is dam") as error:
        EmotionRecognizer.from_hparams("someone/model", fetch_config=config)
    shutil.rmtree(re.search(r"delete (\S+), and it", str(error.value))[1])
    EmotionRecognizer.from_hparams("someone/model", fetch_config=config)


def test_name_that_cannot_be_reached_fails_at_once(tmp_path, no_hub):
    for network, error in ((True, BackboneError), (False, SourceError)):
        config = FetchConfig(
            huggingface_cache_dir=str(tmp_path), allow_network=network
        )
        started = time.monotonic()
        with pytest.raises(error, match="someone/model"):
            EmotionRecognizer.from_hparams("someone/model", fetch_config=config)
        assert time.monotonic() - started < 3
    with pytest.raises(SourceError, match="no folder results/no/such/run"):
        EmotionRecognizer.from_hparams("results/no/such/run")


def test_export_with_savedir_is_loaded(exported, tmp_path):
    EmotionRecognizer.from_hparams(exported, savedir=tmp_path / "save")
    # What lies there goes before the source, so it is what is checked.
    settings = tmp_path / "save/hyperparams.yaml"
    text = settings.read_text()
    settings.unlink()
    settings.write_text(f"{text}\nx: !apply:os.getpid []\n")
    with pytest.raises(UnsafeYAMLError, match="os.getpid"):
        EmotionRecognizer.from_hparams(exported, savedir=tmp_path / "save")


def test_hostile_export_is_refused_unless_it_is_trusted(export, tmp_path):
    mark = tmp_path / "executed"
    edit(
        export,
        "context_turns: 0",
        f"context_turns: 0\nx: !apply:os.system ['touch {mark}']",
    )
    with pytest.raises(UnsafeYAMLError, match="!apply:os.system in line"):
        EmotionRecognizer.from_hparams(export)
    assert not mark.exists()
    EmotionRecognizer.from_hparams(export, trust_source=True)
    assert mark.exists()


def test_later_format_is_refused(export):
    edit(export, "format_version: 2", "format_version: 3\nx: !new:emoq.New {}")
    with pytest.raises(SourceError, match="format 3.*up to 2: install"):
        EmotionRecognizer.from_hparams(export)


@pytest.mark.parametrize(
    "name",
    [
        "adapter/adapter_model.safetensors",
        "fusion.safetensors",
        "text_encoder/tokenizer.json",
        "contents.json",
    ],
)
def test_truncated_or_missing_file_is_named(name, export):
    path = export / name
    path.write_bytes(path.read_bytes()[:-10])
    message = f"not whole: {name} (has .* bytes instead|is damaged)"
    with pytest.raises(SourceError, match=message):
        EmotionRecognizer.from_hparams(export)
    path.unlink()
    with pytest.raises(SourceError, match=f"not whole: {name} is missing"):
        EmotionRecognizer.from_hparams(export)


@pytest.mark.parametrize(
    "name",
    [
        "adapter/adapter_model.safetensors",
        "fusion.safetensors",
        "projector.safetensors",
        "llm/model.safetensors",
        "text_encoder/tokenizer.json",
        "prompt.txt",
    ],
)
def test_a_flipped_byte_in_an_export_is_named(name, export):
    flip_a_byte(export / name)
    says = f"export is not whole: {name} is damaged .*export it again"
    with pytest.raises(SourceError, match=says):
        EmotionRecognizer.from_hparams(export)


def test_a_yaml_that_was_edited_or_damaged_gives_a_warning(export, caplog):
    EmotionRecognizer.from_hparams(export)
    assert "not as it was written" not in caplog.text
    edit(export, "Before", "Bffore")
    EmotionRecognizer.from_hparams(export)
    says = (
        "hyperparams.yaml is not as it was written: unless you have edited it"
    )
    assert says in caplog.text


@pytest.mark.parametrize(
    "name", ["fusion.safetensors", "../backbones/llm/model.safetensors"]
)
def test_a_flipped_byte_in_the_recognizer_of_a_run_is_named(
    run, tmp_path, name
):
    folder = shutil.copytree(run, tmp_path / "run") / "recognizer"
    flip_a_byte(folder / name)
    says = f"{name} is damaged .*start the run again"
    with pytest.raises(SourceError, match=says):
        EmotionRecognizer.from_hparams(folder)
    (folder / "contents.json").unlink()  # as by an earlier version
    EmotionRecognizer.from_hparams(folder)


def test_an_export_is_on_the_disk_before_its_name_is(tmp_path, disk):
    out = tmp_path / "export"
    with export_module._taking_the_place_of(out) as folder:
        (folder / "adapter").mkdir()
        (folder / "adapter/adapter_model.safetensors").write_bytes(b"weights")
    assert (out / "adapter").is_dir()
    assert not disk.unsafe_at(out)
    assert tmp_path in disk.synced


def test_adapter_of_another_model_is_refused(export):
    path = export / "adapter/adapter_model.safetensors"
    weights = load_file(path)
    name = min(weights)
    weights[name.replace("down", "town")] = weights.pop(name)
    save_file(weights, path, metadata={"format": "pt"})
    (export / "contents.json").write_text("{}")  # nor is it damaged
    with pytest.raises(SourceError, match="2 of its weights do not fit"):
        EmotionRecognizer.from_hparams(export)


def test_earlier_export_is_replaced_whole(run, export):
    (export / "llm/model.safetensors").write_bytes(b"damaged")
    (export / "llm_tokenizer").mkdir()  # of an export of another kind
    assert export_recognizer(run, export) == export
    EmotionRecognizer.from_hparams(export)
    assert not (export / "llm_tokenizer").exists()
    assert [path.name for path in export.parent.iterdir()] == ["export"]


@pytest.mark.parametrize("thing", ["notes.md", ".git/config", "save/a.ckpt"])
def test_folder_with_other_things_is_left_alone(thing, run, export):
    (export / thing).parent.mkdir(exist_ok=True)
    (export / thing).write_text("mine")
    before = (export / "contents.json").stat().st_mtime_ns
    with pytest.raises(ExportError, match=f"holds {Path(thing).parts[0]}, wh"):
        export_recognizer(run, export)
    assert (export / "contents.json").stat().st_mtime_ns == before


def test_files_that_only_look_like_an_exports_are_left_alone(run, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ExportError, match="holds README.md"):
        export_recognizer(run, tmp_path)
    with pytest.raises(ExportError, match="is a file"):
        export_recognizer(run, tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == "mine"


def test_export_that_fails_leaves_the_earlier_one(run, export, tmp_path):
    broken = shutil.copytree(run, tmp_path / "broken")
    (broken / "recognizer/decoder.safetensors").write_bytes(b"damaged")
    with pytest.raises(SourceError, match="decoder.safetensors has 7 bytes"):
        export_recognizer(broken, export)
    EmotionRecognizer.from_hparams(export)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken", "export"]


def test_export_that_would_recognize_otherwise_is_not_kept(
    run, tmp_path, monkeypatch
):
    real, calls = export_module._probe, []

    def probe(recognizer):
        calls.append(recognizer)
        return real(recognizer) + 0.01 * len(calls)

    monkeypatch.setattr(export_module, "_probe", probe)
    with pytest.raises(ExportError, match="other posteriors than the run"):
        export_recognizer(run, tmp_path / "export")
    assert not any(tmp_path.iterdir())


def test_class_of_ones_own_is_exported_and_has_to_be_trusted(
    run, tmp_path, monkeypatch, caplog, capsys
):
    copy = shutil.copytree(run, tmp_path / "run")
    edit(copy / "recognizer", "emoq_modules.FbankEncoder", "mine.MyEncoder")
    with pytest.raises(SourceError, match="not installed.*mine.MyEncoder"):
        export_recognizer(copy, tmp_path / "export")
    (tmp_path / "mine.py").write_text(
        "from emoq_modules import FbankEncoder\n"
        "class MyEncoder(FbankEncoder): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "export"
    assert main(["export", str(copy), str(out)]) == 0
    assert "Others will be told: this export" in caplog.text
    assert '"FOLDER", trust_source=True)' in (out / "README.md").read_text()
    assert "trust_source=True)" in capsys.readouterr().out
    with pytest.raises(UnsafeYAMLError, match="mine.MyEncoder"):
        EmotionRecognizer.from_hparams(out)
    EmotionRecognizer.from_hparams(out, trust_source=True)


def test_what_is_no_finished_stage_2_is_refused(run, tmp_path):
    out = tmp_path / "export"
    with pytest.raises(ExportError, match="no folder .*nowhere"):
        export_recognizer(tmp_path / "nowhere", out)
    with pytest.raises(ExportError, match="no trained stage 2"):
        export_recognizer(run.parent / "stage1", out)
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    (unfinished / "results.json").unlink()
    with pytest.raises(ExportError, match="not finished"):
        export_recognizer(unfinished, out)
    assert not out.exists()
