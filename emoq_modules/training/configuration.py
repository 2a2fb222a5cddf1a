"""A run's configuration: an experiment, presets laid over it, options on top.

An experiment is a HyperPyYAML file; a preset is a few of its keys. Each key
replaces the experiment's value whole. Keys that only one stage has stand in a
preset's section ``stage1`` or ``stage2``.
"""

import copy
import difflib
import re
from io import StringIO
from pathlib import Path

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError

from emoq_modules.errors import ConfigurationError

_SECTIONS = ("stage1", "stage2")
# How HyperPyYAML begins its messages.
_REFUSED = "There is no such|Invalid argument to"


def compose(experiment, presets=(), options=""):
    """Lays presets and options over an experiment.

    Arguments
    ---------
    experiment : str or Path
        The experiment's YAML file.
    presets : list of str or Path
        Presets' YAML files; a later one wins.
    options : str
        YAML of top-level keys, which win over all.

    Returns
    -------
    str
        The whole experiment as YAML, its references resolved.

    Raises
    ------
    ConfigurationError
        If a file is missing or no YAML, a key is none of the experiment's, or
        a value is of the wrong kind or still missing (``!PLACEHOLDER``).

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "experiment.yaml").write_text(
    ...     "stage: 1\\na: 2\\nb: !ref <a>"
    ... )
    >>> _ = (folder / "preset.yaml").write_text("stage1: {a: 3}")
    >>> print(compose(folder / "experiment.yaml", [folder / "preset.yaml"]))
    stage: 1
    a: 3
    b: 3
    <BLANKLINE>
    """
    tree = _read(experiment)
    if "stage" not in tree:
        raise ConfigurationError(
            f"{experiment} is no experiment, it has no key 'stage': give "
            "hparams/emoq_stage1.yaml or hparams/emoq_stage2.yaml, and then "
            "the options; a preset goes after --preset."
        )
    for preset in presets:
        content = _read(preset)
        sections = {
            name: content.pop(name) for name in _SECTIONS if name in content
        }
        _lay_over(tree, content, preset)
        section = sections.get(f"stage{tree['stage']}")
        if section is not None:
            _lay_over(tree, _checked(section, preset), preset)
    _lay_over(tree, _parse(options), "the command line")
    try:
        return resolve_references(_dump(tree)).getvalue()
    except ValueError as error:
        missing = re.match(r"'(\w+)' is a !PLACEHOLDER", str(error))
        if missing is None:
            raise ConfigurationError(f"{experiment}: {error}") from error
        key = missing[1]
        raise ConfigurationError(
            f"{key} has no value: give it as --{key} VALUE."
        ) from None


def change(options, **values):
    """Returns options with some values set, as YAML.

    Example
    -------
    >>> change("a: 1", b=[2, 3])
    'a: 1\\nb:\\n- 2\\n- 3\\n'
    """
    return _dump({**_parse(options), **values})


def known_options(experiment, options):
    """Those of some options that an experiment has a key for, as YAML."""
    tree = _read(experiment)
    known = {k: v for k, v in _parse(options).items() if k in tree}
    return _dump(known)


def load(resolved, keys=None):
    """Makes the objects of a composed experiment.

    Arguments
    ---------
    resolved : str
        What ``compose`` returned.
    keys : list of str | None
        Make these alone, and the plain values; None makes all. What a key
        refers to has to be plain, or among the keys.

    Returns
    -------
    dict

    Raises
    ------
    ConfigurationError
        If what a value names does not exist, or does not take its arguments.
    """
    if keys is not None:
        tree = YAML().load(resolved)
        chosen = {
            key: value
            for key, value in tree.items()
            if key in keys or _is_plain(value)
        }
        resolved = _dump(chosen)
    try:
        return load_hyperpyyaml(resolved)
    except (ImportError, TypeError, ValueError) as error:
        # Raised by HyperPyYAML, or by a constructor for a value it refuses.
        message = ": ".join(map(str, error.args))
        if type(error) is ValueError or re.match(_REFUSED, message):
            raise ConfigurationError(message) from error
        raise


def differences(resolved, earlier):
    """The top-level keys whose values differ between two configurations.

    Example
    -------
    >>> differences("a: 1\\nb: 2", "a: 1\\nb: 3")
    {'b': ('3', '2')}
    """
    ours, theirs = YAML().load(resolved), YAML().load(earlier)
    return {
        key: (_text(theirs.get(key)), _text(ours.get(key)))
        for key in [*ours, *(key for key in theirs if key not in ours)]
        if _text(ours.get(key)) != _text(theirs.get(key))
    }


def _read(path):
    path = Path(path)
    try:
        content = YAML().load(path.read_text(encoding="utf-8"))
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
        content = YAML().load(options) or {}
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
    return content


def _lay_over(tree, values, origin):
    for key, value in values.items():
        if key not in tree:
            near = difflib.get_close_matches(key, tree, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigurationError(
                f"{key!r} in {origin} is no key of this experiment, so nothing "
                f"would read it.{hint}"
            )
        if isinstance(tree[key], bool | int | float) and isinstance(value, str):
            raise ConfigurationError(
                f"{key} in {origin} is {value!r}; it has to be something like "
                f"{_text(tree[key])}."
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


def _text(node):
    """A node as YAML, without the comments."""
    node = copy.deepcopy(node)
    for part in _parts(node):
        part.ca.items.clear()
        part.ca.comment = None
    return _dump({"value": node}).removeprefix("value:").strip()


def _parts(node):
    """All mappings and sequences of a tree."""
    if isinstance(node, CommentedMap | CommentedSeq):
        yield node
        values = node.values() if isinstance(node, CommentedMap) else node
        for value in values:
            yield from _parts(value)


def read_options(experiment, arguments):
    """Options of an experiment's run, told apart from SpeechBrain's.

    Arguments
    ---------
    experiment : str or Path
        The experiment's YAML file.
    arguments : list of str
        ``--key value``, of top-level keys and of run options.

    Returns
    -------
    options : str
        YAML of the top-level keys that are set.
    run_opts : dict
        SpeechBrain's run options.

    Raises
    ------
    ConfigurationError
        If an option is given twice, or is no YAML.

    Example
    -------
    >>> options, run_opts = read_options(
    ...     "hparams/emoq_stage1.yaml", ["--lr", "0.1", "--device", "cpu"]
    ... )
    >>> options, run_opts["device"]
    ('lr: 0.1\\n', 'cpu')
    """
    _, run_opts, options = sb.parse_arguments([str(experiment), *arguments])
    # Run options that the experiment has keys for are settings of the run.
    given = {key: run_opts[key] for key in run_opts.overridden_args}
    settings = known_options(experiment, change("", **given))
    return change(options, **YAML().load(settings)), run_opts
