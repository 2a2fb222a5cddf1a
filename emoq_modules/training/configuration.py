"""A run's hyperparameters: an experiment, presets over it, options on top.

An experiment is a HyperPyYAML file; a preset is a few of its keys. Each key
replaces the experiment's value whole. Keys that only one stage has stand in a
preset's section ``stage1`` or ``stage2``.

``plan_runs`` reads the files, once, and gives each stage of each fold as a
``StageRun``; its objects are made when it is run.
"""

import difflib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from itertools import chain
from pathlib import Path

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.constructor import DuplicateKeyError
from speechbrain.utils.run_opts import RunOptions

from emoq_modules import present_names
from emoq_modules.errors import ConfigurationError
from emoq_modules.lobes.chat import choose_words
from emoq_modules.training.ranges import (
    BUILT,
    LITERAL,
    LITERAL_OR_NULL,
    check_ranges,
)

_SECTIONS = ("stage1", "stage2")
_EQUALS = "\ue100"  # stands for a "=" on its way through SpeechBrain
# SpeechBrain's options that take no value.
_FLAGS = {
    key for key, value in RunOptions().as_dict().items() if value is False
}
_OR_A_WORD = ("audio_layer",)  # the encoder says which
# How HyperPyYAML begins its messages.
_REFUSED = "There is no such|Invalid argument to"


@dataclass(frozen=True)
class StageRun:
    """One stage of one fold, composed and not yet run.

    ``hparams_yaml`` is its whole YAML, references resolved; ``first`` is the
    run of stage 1 that it starts from, None where it starts from nothing or
    there is no experiment to make it with.
    """

    hparams_yaml: str
    first: "StageRun | None" = None

    @cached_property
    def hparams(self):
        """Plain values, and what prepares the corpus; no other key."""
        tree = YAML().load(self.hparams_yaml)
        early = {k: v for k, v in tree.items() if _is_plain(v)}
        if "prepare" in tree:
            early["prepare"] = tree["prepare"]
        if early.get("context_turns"):
            early["prompt"] = tree["prompt"]
        return load_hparams(_dump(early))

    @property
    def folder(self):
        """Its output folder."""
        return Path(self.hparams["output_folder"])

    @property
    def weights(self):
        """The file that a stage 2 starts from, or None."""
        stage, given = self.hparams["stage"], self.hparams["fusion_weights"]
        return Path(given) if stage == 2 and given else None

    @property
    def has_own_stage_1(self):
        """Whether ``first`` makes the weights, and not a person's path."""
        if self.first is None:
            return False
        return self.weights.parent.resolve() == self.first.folder.resolve()

    def load(self, *keys):
        """Makes its objects, all or those of some keys, as ``load_hparams``."""
        if not keys:
            return load_hparams(self.hparams_yaml)
        tree = YAML().load(self.hparams_yaml)
        return load_hparams(_dump({key: tree[key] for key in keys}))


def plan_runs(experiment, presets=(), options="", folds=None, debug=False):
    """Composes the runs that an experiment asks for, a ``StageRun`` a fold.

    Presets are laid over the experiment's file, and ``options``, YAML of
    top-level keys, over these. ``folds`` names one, several (``1,2,5``) or
    ``all``; None is the experiment's own. Runs of a few batches (``debug``) are
    a variant of their own, so as not to take the place of whole ones.
    """
    options = _parse(options)
    if "stage" in options:
        raise ConfigurationError(
            "--stage is no option: the stage is that of the experiment, "
            "hparams/emoq_stage1.yaml or hparams/emoq_stage2.yaml."
        )
    tree = _merged(experiment, presets, options)
    if tree.get("pretrainer") and tree["fusion_weights"] is None:
        raise ConfigurationError(
            "fusion_weights is null, and the pretrainer would load them: give "
            "--pretrainer null too, to start from nothing."
        )
    first, path = None, Path(experiment).with_name("emoq_stage1.yaml")
    if tree["stage"] == 2 and tree["fusion_weights"] and path.exists():
        first = _merged(path, presets, options, others_allowed=True)
    runs = []
    for fold in _chosen_folds(folds, tree):
        values = {"fold": fold}
        if debug:
            values["variant"] = f"{tree['variant']}-debug"
        before = first and StageRun(_resolve(path, first, **values))
        runs.append(StageRun(_resolve(experiment, tree, **values), before))
        for run in (before or runs[-1], runs[-1]):
            check_ranges(run.hparams)
            _check_shares(run.hparams)
        if tree["stage"] == 2:
            _check_context(runs[-1].hparams)
            _check_words(runs[-1].hparams)
    return runs


def merge_presets(experiment, presets=(), options=""):
    """Lays presets, and options over them, over an experiment.

    What is returned is its whole YAML, references resolved. A key that is none
    of the experiment's, a value of the wrong kind and one that is still missing
    (``!PLACEHOLDER``) are errors.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> experiment, preset = folder / "experiment.yaml", folder / "preset.yaml"
    >>> _ = experiment.write_text("stage: 1\\na: 2\\nb: !ref <a>")
    >>> _ = preset.write_text("stage1: {a: 3}")
    >>> merge_presets(experiment, [preset])
    'stage: 1\\na: 3\\nb: 3\\n'
    """
    tree = _merged(experiment, presets, _parse(options))
    return _resolve(experiment, tree)


def load_hparams(hparams_yaml):
    """Makes the objects of a composed experiment, by their keys."""
    try:
        return load_hyperpyyaml(hparams_yaml)
    except (ImportError, TypeError, ValueError) as error:
        # Raised by HyperPyYAML, or by a constructor for a value it refuses.
        message = ": ".join(map(str, error.args))
        if type(error) is ValueError or re.match(_REFUSED, message):
            raise ConfigurationError(message) from error
        raise


def change(options, **values):
    """Sets values of options, which are YAML of top-level keys.

    Example
    -------
    >>> change("a: 1", b=[2, 3])
    'a: 1\\nb:\\n- 2\\n- 3\\n'
    """
    return _dump({**_parse(options), **values})


def read_options(experiment, arguments):
    """Options of a run as YAML, told apart from SpeechBrain's run options.

    Example
    -------
    >>> options, run_opts = read_options(
    ...     "hparams/emoq_stage1.yaml", ["--lr", "0.1", "--device", "cpu"]
    ... )
    >>> options, run_opts["device"]
    ('lr: 0.1\\n', 'cpu')
    """
    words = chain.from_iterable(
        word.split("=", 1) if word.startswith("--") else [word]
        for word in arguments
    )
    key, quoted, is_given = "", [], True
    for word in words:
        if word.startswith("--"):
            key, is_given = word.removeprefix("--"), word[2:] in _FLAGS
        elif is_given:
            raise ConfigurationError(
                f"{word!r} belongs to no option: an option is --NAME VALUE."
            )
        else:
            word, is_given = _as_yaml(key, word), True
        # SpeechBrain would take the "=" in a value for that after a key.
        quoted.append(word.replace("=", _EQUALS))
    _, run_opts, options = sb.parse_arguments([str(experiment), *quoted])
    options = options.replace(_EQUALS, "=")
    # Run options that the experiment has keys for are settings of the run.
    keys = read_keys(experiment)
    given = {k: run_opts[k] for k in run_opts.overridden_args if k in keys}
    return change(options, **given), run_opts


def _as_yaml(key, value):
    """YAML of an option: a folder called ``run #2`` is called that."""
    is_text = key in LITERAL or (key in LITERAL_OR_NULL and value != "null")
    if not is_text:
        return value
    if not value and key != "transcribe":
        raise ConfigurationError(f"--{key} has an empty value.")
    # What is built, a configuration and a list are no text.
    is_built = key in BUILT and value[0] in "!{["
    is_built |= value.startswith("!ref ")
    return value if is_built else json.dumps(value)


def _check_shares(hparams):
    """Whether what is left out in training are shares of the utterances."""
    text, audio = (
        hparams.get(key, 0) for key in ("text_dropout", "audio_dropout")
    )
    if text + audio > 1:
        raise ConfigurationError(
            f"text_dropout is {text} and audio_dropout {audio}; they are "
            "shares of the training utterances, and together 1 at most."
        )


def _check_context(hparams):
    """Whether the turns before an utterance have a place in the prompt."""
    turns = hparams["context_turns"]
    if turns and not hparams["prompt"].has_context:
        raise ConfigurationError(
            f"context_turns is {turns}, but the prompt has no place for what "
            "was said before: give its user turn a line with {context}, or set "
            f"context_turns to 0. It is {hparams['prompt'].user!r}."
        )


def _check_words(hparams):
    """Whether each label has a word that the LLM can say for it."""
    try:
        choose_words(hparams["labels"], hparams["words"])
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def _merged(experiment, presets, options, others_allowed=False):
    """An experiment's tree with presets and options laid over it."""
    tree = read_keys(experiment)
    if "stage" not in tree:
        raise ConfigurationError(
            f"{experiment} is no experiment, it has no key 'stage': give "
            "hparams/emoq_stage1.yaml or hparams/emoq_stage2.yaml, and then "
            "the options; a preset goes after --preset."
        )
    for preset in presets:
        content = read_keys(preset)
        sections = {
            name: content.pop(name) for name in _SECTIONS if name in content
        }
        _lay_over(tree, content, preset)
        section = sections.get(f"stage{tree['stage']}")
        if section is not None:
            _lay_over(tree, _checked(section, preset), preset)
    if others_allowed:
        options = {k: v for k, v in options.items() if k in tree}
    _lay_over(tree, options, "the command line")
    for key in ("labels", "folds"):
        if not _is_plain(tree.get(key)):
            # Found in the data: what the rest is made for, and a trained system
            # keeps.
            nodes = YAML().load(_resolve(experiment, tree))
            tree[key] = load_hparams(_dump({key: nodes[key]}))[key]
    if "labels" in tree:
        _check_labels(tree["labels"])
    return tree


def _check_labels(labels):
    """Whether labels are words; YAML makes other things of some."""
    if not isinstance(labels, list):
        raise ConfigurationError(
            f"labels is {labels!r}; it has to be a list, such as [angry, sad]."
        )
    for label in labels:
        if not isinstance(label, str):
            raise ConfigurationError(
                f"The label {label!r} is no text: put it in quotes, as in "
                f'["{label}", angry].'
            )
        if not label.strip():
            raise ConfigurationError(f"A label is empty in {list(labels)}.")
    if len(set(labels)) < len(labels):
        raise ConfigurationError(f"A label is there twice in {list(labels)}.")
    if len(labels) < 2:
        raise ConfigurationError(
            f"labels is {list(labels)}: it takes two to tell apart."
        )


def _resolve(experiment, tree, **values):
    """The YAML of a tree with some values set, its references resolved."""
    try:
        return resolve_references(_dump({**tree, **values})).getvalue()
    except RecursionError:
        raise ConfigurationError(
            f"{experiment}, with presets and options, has a !ref that leads "
            "back to itself."
        ) from None
    except ValueError as error:
        missing = re.match(r"'(\w+)' is a !PLACEHOLDER", str(error))
        if missing is None:
            raise ConfigurationError(f"{experiment}: {error}") from error
        key = missing[1]
        raise ConfigurationError(
            f"{key} has no value: give it as --{key} VALUE."
        ) from None


def _chosen_folds(folds, tree):
    """The folds that ``--fold`` means."""
    known = tree["folds"]
    if isinstance(known, int) and known >= 1:  # so many of them
        known = range(1, known + 1)
    elif not isinstance(known, list) or not known:
        raise ConfigurationError(
            f"folds is {known!r}; it has to be a number, 1 or more, or a list."
        )
    known = list(map(str, known))
    if folds is None:
        chosen = [str(tree["fold"])]
    elif folds == "all":
        chosen = known
    else:
        chosen = list(dict.fromkeys(folds.replace(" ", "").split(",")))
    for fold in chosen:
        if fold not in known:
            raise ConfigurationError(
                f"There is no fold {fold} in {tree['corpus']}; its folds are "
                f"{', '.join(known)}."
            )
    return list(map(int, chosen))


def read_keys(path):
    """Reads the keys of an experiment or preset, as YAML nodes."""
    path = Path(path)
    try:
        content = present_names(path.read_text(encoding="utf-8"))
        content = YAML().load(content)
    except FileNotFoundError:
        raise ConfigurationError(f"There is no file {path}.") from None
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error.strerror})."
        ) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no YAML file: {error}") from None
    return _checked(content, path)


def _parse(options):
    try:
        content = YAML().load(present_names(options)) or {}
    except DuplicateKeyError as error:
        key = re.search(r'key "(.+?)"', error.problem)[1]
        raise ConfigurationError(f"--{key} is given twice.") from None
    except YAMLError as error:
        raise ConfigurationError(
            f"The options on the command line are no YAML: {error}"
        ) from None
    return _checked(content, "the command line")


def _checked(content, origin):
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"In {origin} there is {content!r} in place of keys with values."
        )
    strange = [key for key in content if not isinstance(key, str)]
    if strange:
        raise ConfigurationError(
            f"In {origin} there is the key {strange[0]!r}, which is no name."
        )
    return content


def _lay_over(tree, values, origin):
    written = _dump(values)
    for key, value in values.items():
        # A preset may have keys of its own, to be options of what it brings.
        if key not in tree and f"<{key}>" not in written:
            near = difflib.get_close_matches(key, tree, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigurationError(
                f"{key!r} in {origin} is no key of this experiment, so nothing "
                f"would read it.{hint}"
            )
        is_number = isinstance(tree.get(key), bool | int | float)
        if is_number and isinstance(value, str) and key not in _OR_A_WORD:
            raise ConfigurationError(
                f"{key} in {origin} is {value!r}; it has to be something like "
                f"{tree[key]}."
            )
        tree[key] = value


def _is_plain(node):
    """Whether a node is made of plain values, with no object to build."""
    if getattr(node, "tag", None) is not None and str(node.tag.value or ""):
        if str(node.tag.value).startswith("!"):
            return False
    if isinstance(node, dict):
        return all(_is_plain(value) for value in node.values())
    if isinstance(node, list):
        return all(_is_plain(value) for value in node)
    return True


def _dump(tree):
    text = StringIO()
    YAML().dump(dict(tree), text)
    return text.getvalue()
