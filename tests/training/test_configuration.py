"""An experiment, presets over it, options on top."""

from collections import Counter

import pytest
import torch
from ruamel.yaml import YAML

from emoq_modules.errors import ConfigurationError
from emoq_modules.lobes.losses import inverse_frequency_weights
from emoq_modules.training import ranges
from emoq_modules.training.configuration import (
    StageRun,
    change,
    load_hparams,
    merge_presets,
    plan_runs,
    read_options,
)
from emoq_modules.training.run_folder import differences

EXPERIMENT = """\
stage: 1
data_folder: !PLACEHOLDER
size: 2
rate: 0.1
shuffle: True
labels: [angry, sad]
folder: !ref <data_folder>/<size>
rates:
    one: !ref <rate>
    other: 0.2
layer: !new:torch.nn.Linear
    in_features: !ref <size>
    out_features: 3
optimizer: !name:torch.optim.SGD
    lr: !ref <rate>
store: null
"""


@pytest.fixture
def write(tmp_path):
    """Writes a YAML file and returns its path."""

    def writer(name, content):
        path = tmp_path / name
        path.write_text(content)
        return path

    return writer


@pytest.fixture
def experiment(write):
    return write("experiment.yaml", EXPERIMENT)


def hparams_of(experiment, presets=(), options="data_folder: here"):
    return StageRun(merge_presets(experiment, presets, options)).hparams


@pytest.mark.parametrize(
    ("presets", "options", "wanted"),
    [
        (["size: 5"], "", {"size": 5, "rate": 0.1}),
        (["size: 5\nrate: 1.0", "size: 6"], "", {"size": 6, "rate": 1.0}),
        (["size: 5", "size: 6"], "size: 7", {"size": 7}),
        (["rates: {one: 5}"], "", {"rates": {"one": 5}}),  # replaced whole
        (["stage1: {size: 10}\nsize: 5"], "", {"size": 10}),
        (["stage1:\nsize: 5"], "", {"size": 5}),  # an empty section
    ],
)
def test_presets_and_options_win_in_their_order(
    experiment, write, presets, options, wanted
):
    files = [write(f"{k}.yaml", preset) for k, preset in enumerate(presets)]
    values = hparams_of(experiment, files, f"data_folder: here\n{options}")
    assert {key: values[key] for key in wanted} == wanted


@pytest.mark.parametrize(("stage", "size"), [(1, 10), (2, 20)])
def test_a_section_is_for_its_stage_alone(write, stage, size):
    experiment = write("e.yaml", f"stage: {stage}\nsize: 1\nrate: 2")
    preset = write("p.yaml", "rate: 3\nstage1: {size: 10}\nstage2: {size: 20}")
    assert hparams_of(experiment, [preset], "") == {
        "stage": stage,
        "size": size,
        "rate": 3,
    }


def test_references_resolve_after_everything_is_laid_over(experiment, write):
    preset = write("a.yaml", "size: 5\nstore: !ref <folder>/store")
    values = hparams_of(experiment, [preset], "data_folder: there\nrate: 0.5")
    assert values["folder"] == "there/5"
    assert values["store"] == "there/5/store"
    assert values["rates"] == {"one": 0.5, "other": 0.2}


def test_tags_survive_and_make_objects(experiment, write):
    preset = write("a.yaml", "size: 5\nstore: !new:collections.Counter")
    hparams = load_hparams(
        merge_presets(experiment, [preset], "data_folder: here")
    )
    assert hparams["layer"].weight.shape == (3, 5)
    assert hparams["optimizer"].func is torch.optim.SGD
    assert hparams["optimizer"].keywords == {"lr": 0.1}
    assert hparams["store"] == Counter()


def test_plain_values_load_without_making_objects(experiment):
    values = hparams_of(experiment)
    assert "layer" not in values and "optimizer" not in values
    assert values["labels"] == ["angry", "sad"]


def test_what_prepares_is_made_with_the_plain_values(write):
    composed = merge_presets(
        write(
            "e.yaml",
            "stage: 1\nlabels: [a, b]\nlayer: !new:torch.nn.Identity\n"
            "prepare: !name:builtins.dict\n    labels: !ref <labels>",
        )
    )
    hparams = StageRun(composed).hparams
    assert hparams.keys() == {"stage", "labels", "prepare"}
    assert hparams["prepare"]() == {"labels": ["a", "b"]}


def test_a_composed_experiment_composes_to_itself(experiment, write):
    composed = merge_presets(experiment, (), "data_folder: here\nrate: 1e-5")
    assert merge_presets(write("again.yaml", composed)) == composed
    assert StageRun(composed).hparams["rate"] == 1e-5


@pytest.mark.parametrize(
    ("preset", "options", "says"),
    [
        ("sise: 3", "", r"'sise' in .*p\.yaml .*Did you mean size\?"),
        ("stage1: {sise: 3}", "", r"'sise' in .*p\.yaml .*mean size\?"),
        ("stage3: {size: 3}", "", r"'stage3' in .*p\.yaml"),
        ("xyz: 3", "", r"nothing would read it\.$"),
        ("", "sise: 3", r"'sise' in the command line .*mean size\?"),
        ("size: many", "", r"size in .*p\.yaml is 'many'; .* like 2"),
        ("", "shuffle: no", r"shuffle in the command line is 'no'"),
        ("stage1: 3", "", r"p\.yaml there is 3 in place of keys"),
        ("- size", "", r"p\.yaml there is \['size'\] in place of keys"),
        ("size: [1", "", r"p\.yaml is no YAML file"),
        ("size: 1\nsize: 2", "", r"(?s)p\.yaml is no YAML.*duplicate key"),
        ("", "size: [1", r"options on the command line are no YAML"),
        ("", "size", r"In the command line there is 'size' in place"),
        ("3: 4", "", r"p\.yaml there is the key 3, which is no name"),
        (
            "a: !ref <size>\nsize: !ref <a>",
            "data_folder: x",
            "leads back to itself",
        ),
        ("store: !ref <no>", "data_folder: x", r'experiment\.yaml: .*"no"'),
        ("data_folder: !PLACEHOLDER", "", r"give it as --data_folder VALUE"),
    ],
)
def test_what_is_wrong_is_named(experiment, write, preset, options, says):
    presets = [write("p.yaml", preset or "data_folder: here")]
    with pytest.raises(ConfigurationError, match=says):
        merge_presets(experiment, presets, options)


@pytest.mark.parametrize("section", ["stage1", "stage2"])
def test_no_more_than_all_is_left_out_in_training(write, section):
    shares = "{text_dropout: 0.7, audio_dropout: 0.4}"
    preset = write("p.yaml", f"{section}: {shares}")
    with pytest.raises(ConfigurationError, match="0.4; they .* together 1 at"):
        plan_runs("hparams/emoq_stage2.yaml", [preset], "data_folder: x")


@pytest.mark.parametrize(
    ("store", "says"),
    [
        ("!new:torch.nn.Linaer", "no such class as torch.nn.Linaer"),
        (
            "!new:torch.nn.Linear {size: 3}",
            "Invalid argument to class torch.nn.Linear: .*'size'",
        ),
        ("!new:emoq_modules.FbankEncoder {normalize: x}", "normalize is 'x'"),
    ],
)
def test_an_object_that_cannot_be_made_is_named(experiment, store, says):
    composed = merge_presets(
        experiment, (), f"data_folder: here\nstore: {store}"
    )
    with pytest.raises(ConfigurationError, match=says):
        load_hparams(composed)


def test_an_error_of_another_kind_keeps_its_traceback(experiment):
    store = "!apply:operator.getitem [{a: 1}, b]"
    composed = merge_presets(experiment, (), f"data_folder: x\nstore: {store}")
    with pytest.raises(KeyError):
        load_hparams(composed)


@pytest.mark.parametrize("name", ["nowhere.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(ConfigurationError, match=name.replace(".", r"\.")):
        merge_presets(tmp_path / name)


def test_a_preset_in_the_place_of_the_experiment_is_told_apart(write):
    with pytest.raises(ConfigurationError, match="no experiment.*--preset"):
        merge_presets(write("p.yaml", "size: 3"))


def test_options_can_be_changed(experiment):
    options = change("size: 3\nrate: 1.0", rate=0.5, data_folder="x")
    values = hparams_of(experiment, (), options)
    assert (values["size"], values["rate"]) == (3, 0.5)


def test_differences_name_the_keys_that_changed(experiment, write):
    earlier = merge_presets(experiment, (), "data_folder: here")
    now = merge_presets(
        experiment,
        [write("p.yaml", "layer: !new:torch.nn.Identity")],
        "data_folder: there",
    )
    assert differences(earlier, earlier) == {}
    changed = differences(now, earlier)
    assert changed.keys() == {"data_folder", "folder", "layer"}
    assert changed["data_folder"] == ("here", "there")
    assert "Identity" in changed["layer"][1]


def test_a_folder_by_another_path_is_no_difference(tmp_path, monkeypatch):
    for name in ("corpus", "other", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)

    def settings(corpus, model="model"):
        return (
            f"data_folder: {corpus}\nllm: {model}\n"
            f"prepare: !name:x.y\n    data_folder: {corpus}\n"
            f"decoder: !new:x.z {{source: {model}}}\n"
        )

    here = settings("corpus")
    for path in ("./corpus", "link", f"{tmp_path}/corpus/"):
        assert differences(settings(path, f"{tmp_path}/model"), here) == {}
    changed = differences(settings("other"), here)
    assert changed.keys() == {"data_folder", "prepare"}


def test_differences_see_keys_that_came_or_went_and_no_comments():
    changed = differences("a: 1  # one\nb: 2", "# a\na: 1\nc: 3")
    assert changed.keys() == {"b", "c"}


def test_a_preset_may_bring_keys_that_it_reads(experiment, write):
    preset = write("p.yaml", "margin: 3\nstore: !ref <margin>")
    options = "data_folder: here\nmargin: 4"
    assert hparams_of(experiment, [preset], options)["store"] == 4
    with pytest.raises(ConfigurationError, match="'margin' in .* is no key"):
        merge_presets(experiment, [write("q.yaml", "margin: 3")])


def test_labels_that_are_found_are_kept_as_they_were_found(experiment, write):
    preset = write("p.yaml", "labels: !apply:builtins.sorted [[sad, '1']]")
    composed = merge_presets(experiment, [preset], "data_folder: here")
    assert StageRun(composed).hparams["labels"] == ["1", "sad"]
    assert merge_presets(write("again.yaml", composed)) == composed


def test_folds_may_be_a_number(write):
    experiment = write(
        "experiment.yaml", EXPERIMENT + "corpus: own\nfolds: 3\nfold: 1\n"
    )
    runs = plan_runs(experiment, options="data_folder: here", folds="all")
    assert [run.hparams["fold"] for run in runs] == [1, 2, 3]
    with pytest.raises(ConfigurationError, match="its folds are 1, 2, 3"):
        plan_runs(experiment, options="data_folder: here", folds="4")


@pytest.mark.parametrize(
    "folder", ["run #2", "take: 3", "007", "2024", "null", "~", "a=b", "Ä 'x\""]
)
@pytest.mark.parametrize("joined", [True, False])
def test_a_folder_is_called_as_it_is_written(folder, joined):
    words = ["--results_folder", folder]
    if joined:
        words = [f"--results_folder={folder}"]
    options, _ = read_options("hparams/emoq_stage1.yaml", words)
    assert YAML().load(options) == {"results_folder": folder}


def test_what_is_no_text_stays_so():
    words = ["--feature_store", "null", "--lr", "1e-3", "--labels", "[a, b]"]
    options, _ = read_options("hparams/emoq_stage1.yaml", words)
    assert YAML(typ="safe").load(options) == {
        "feature_store": None,
        "lr": 1e-3,
        "labels": ["a", "b"],
    }


@pytest.mark.parametrize("words", [["--map", "a=b, c=d"], ["--map=a=b, c=d"]])
def test_a_value_may_have_an_equals_sign(words):
    options, _ = read_options("hparams/emoq_stage1.yaml", words)
    assert YAML(typ="safe").load(options) == {"map": "a=b, c=d"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("angry, sad", "has to be a list, such as"),
        ("[null, sad]", "The label None is no text"),
        ("[1, sad]", r'The label 1 is no text: put it in quotes, as in \["1"'),
        ("[sad, sad]", "A label is there twice"),
        ("[sad]", r"labels is \['sad'\]: it takes two"),
        ("[]", "it takes two"),
        ('["", sad]', "A label is empty"),
    ],
)
def test_labels_that_are_no_words_are_refused(experiment, labels, message):
    with pytest.raises(ConfigurationError, match=message):
        merge_presets(experiment, (), f"data_folder: x\nlabels: {labels}")


def test_each_class_weighting_that_is_let_through_is_one():
    for scheme in ranges._WEIGHTINGS:
        inverse_frequency_weights([0, 1], num_classes=2, scheme=scheme)
