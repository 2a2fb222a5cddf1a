"""Refuses a YAML that would run other code than a trained EmoQ needs.

HyperPyYAML executes what it reads: ``!apply:os.system`` calls a shell. What a
trained system is described by needs a dozen names and no more, so the YAML is
read for its tags first, with nothing executed, and any other name is refused.
"""

import re
from io import StringIO

import ruamel.yaml
import yaml
from hyperpyyaml import resolve_references

from emoq_modules.errors import UnsafeYAMLError

_STANDARD = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ("bool", "float", "int", "map", "null", "seq", "str")
}
# Exact names: a whole package of functions would be as good as a shell.
_NAMES = {
    "!new:emoq_modules.AudioFrames",
    "!new:emoq_modules.EmoQFormer",
    "!new:emoq_modules.FbankEncoder",
    "!new:emoq_modules.HuggingFaceEncoder",
    "!new:emoq_modules.LayerMeanEncoder",
    "!new:emoq_modules.MeanPooledAudio",
    "!new:emoq_modules.PromptTemplate",
    "!new:emoq_modules.SoftPromptDecoder",
    "!new:speechbrain.utils.parameter_transfer.Pretrainer",
    "!apply:emoq_modules.lobes.backbones.load_configuration",
    "!apply:emoq_modules.lobes.backbones.load_tokenizer",
    "!name:emoq_modules.lobes.weights.load_trainable",
    "!name:emoq_modules.lobes.weights.load_adapter",
    "!name:emoq_modules.lobes.weights.load_projector",
    # The same as version 0.1 wrote them.
    "!apply:emoq_modules.backbones.load_configuration",
    "!apply:emoq_modules.backbones.load_tokenizer",
    "!name:emoq_modules.checkpoints.load_trainable",
    "!name:emoq_modules.decoder_weights.load_adapter",
    "!name:emoq_modules.decoder_weights.load_projector",
}
# !applyref calls functions while references are resolved, !include reads other
# files; neither is here.
_REFERENCES = {"!copy", "!ref", "!PLACEHOLDER"}
# So many nodes, with those that aliases stand for, no trained system has.
_MOST_NODES = 10_000
# HyperPyYAML computes what stands in references, as of 9**9**9.
_POWER = re.compile(r"<[^>]*>[\s)]*\*\*|\*\*[\s(]*<")
# Events of either parser.
_PARSERS = ruamel.yaml.events, yaml.events
_STARTS, _ENDS, _ALIASES = (
    tuple(
        getattr(parser, f"{kind}Event") for parser in _PARSERS for kind in kinds
    )
    for kinds in (
        ("SequenceStart", "MappingStart"),
        ("SequenceEnd", "MappingEnd"),
        ("Alias",),
    )
)
# HyperPyYAML reads a scalar in parentheses as a tuple, with PyYAML's loader
# that executes tags inside it.
_TUPLE = re.compile(r"\s*\(.*\)\s*", re.DOTALL)


def check_yaml(text, overrides=None, origin="the YAML"):
    """Refuses a YAML for HyperPyYAML that names code outside the list.

    It is read as HyperPyYAML reads it: as it stands, and then with its
    references resolved by the overrides, which may make tags of what was text
    before. Nothing of it is executed. ``UnsafeYAMLError`` says what it names,
    or what could hide a name, in the YAML called ``origin``; ``ValueError`` if
    a reference leads nowhere.

    Example
    -------
    >>> check_yaml("prompt: !new:emoq_modules.PromptTemplate {user: hello}")
    >>> check_yaml("labels: !apply:os.system [reboot]")
    Traceback (most recent call last):
    ...
    emoq_modules.errors.UnsafeYAMLError: the YAML names code ...
    """
    reader = ruamel.yaml.YAML()
    _check(reader.parse(text), _NAMES | _REFERENCES, origin)
    # Safe from here on: of the tags that this step executes there are none.
    resolved = resolve_references(StringIO(text), overrides).getvalue()
    # The very parser that will read it then.
    events = yaml.parse(resolved, Loader=ruamel.yaml.Loader)
    _check(events, _NAMES, origin)


def is_safe(text):
    """Tells whether ``check_yaml`` has nothing against a YAML."""
    try:
        check_yaml(text)
    except UnsafeYAMLError:
        return False
    return True


def _check(events, allowed, origin):
    """Refuses a YAML in which a tag stands that is not allowed.

    Nor may it take hours to read: by powers, which are computed, or by aliases
    of what is full of aliases itself.
    """
    faults, nodes = [], 0
    sizes, started = {}, []  # of what anchors stand for; of what is open
    for event in events:
        if isinstance(event, _STARTS):
            started.append((event.anchor, nodes))
        elif isinstance(event, _ENDS):
            anchor, before = started.pop()
            sizes[anchor] = nodes - before
        elif isinstance(event, _ALIASES):
            nodes += sizes.get(event.anchor, 0)
        nodes += 1
        line = event.start_mark.line + 1
        # In full, whatever %TAG has shortened it to.
        tag = getattr(event, "tag", None)
        if tag is not None and tag not in allowed | _STANDARD:
            tag = tag.replace("tag:yaml.org,2002:", "!!")
            faults.append(f"{tag} in line {line}")
        value = getattr(event, "value", None) or ""
        if nodes > _MOST_NODES:
            faults.append(f"aliases that multiply, in line {line}")
            break
        if "**" in value and (tag == "!ref" or _POWER.search(value)):
            faults.append(f"a power in line {line}")
        if _TUPLE.fullmatch(value) and "!" in value:
            faults.append(f"{value} in line {line}, a tuple with a tag in it")
    if faults:
        others = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise UnsafeYAMLError(
            f"{origin} names code that no trained EmoQ needs: "
            f"{'; '.join(faults[:3])}{others}. Loading it would run that code "
            "with your rights. If you know who wrote it, for instance because "
            "your own training names a module of yours there, load it with "
            "trust_source=True (--trust_source)."
        )
