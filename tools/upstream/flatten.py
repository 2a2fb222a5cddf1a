"""Makes one YAML of an experiment and its presets, with their comments.

The files' text is cut at their top-level keys; a preset's key takes the place
of the experiment's, with the comment above it if it has one.
"""

import re
from dataclasses import dataclass, field
from io import StringIO
from textwrap import dedent

from hyperpyyaml import resolve_references
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.tokens import TagToken

from emoq_modules.configuration import compose
from upstream.imports import apply

_RULE = re.compile(r"# ---")
# Stands for what every user has to give.
_GIVEN = "data_folder: given"


class FlattenError(ValueError):
    """Files cannot be merged as text; the message is for the person."""


@dataclass
class Block:
    """A top-level key: its own lines, and those above it.

    Arguments
    ---------
    lines : list of str
        From the key to its last line.
    above : list of str
        Blank lines and comments between the key before and this one.
    """

    lines: list
    above: list = field(default_factory=list)

    def comment(self):
        """How many of the lines above are this key's own comment."""
        count = 0
        for line in reversed(self.above):
            if not line.startswith("#") or _RULE.match(line):
                break
            count += 1
        return count

    def without_comment(self):
        """The lines above that are not this key's own comment."""
        return self.above[: len(self.above) - self.comment()]


def flatten(experiment, presets, command, names, left_out=()):
    """Merges presets into an experiment.

    Arguments
    ---------
    experiment : Path
        The experiment's YAML file.
    presets : list of Path
        Presets' YAML files; a later one wins.
    command : str
        How to run the YAML. The comment at the top says it, after the first
        paragraphs of the experiment's and of the last preset's.
    names : Names
        What the names in tags become.
    left_out : set of str
        Keys to leave out.

    Returns
    -------
    str
        YAML that means what ``configuration.compose`` makes of the files, but
        for the names and the keys left out.

    Raises
    ------
    ConfigurationError
        If the files do not make an experiment.
    FlattenError
        If they cannot be merged as text.
    """
    composed = compose(experiment, presets, _GIVEN)
    blocks = _blocks(experiment.read_text(encoding="utf-8"), experiment)
    stage = YAML().load(composed)["stage"]
    first = next(iter(blocks.values()))
    ours, first.above = first.above, []
    theirs = []
    for preset in presets:
        content = _blocks(preset.read_text(encoding="utf-8"), preset)
        start = next(iter(content.values()))
        theirs, start.above = start.above, []
        _lay_over(blocks, content, stage, preset)
    lines = []
    for key, block in blocks.items():
        gone = key in left_out
        lines += block.without_comment() if gone else block.above + block.lines
    top = [*_paragraph(ours), "#", *_paragraph(theirs), "#", f"#   {command}"]
    merged = "\n".join([*top, "", *lines]).rstrip() + "\n"
    merged = _rename_tags(merged, names)
    kept = {
        key: value
        for key, value in YAML().load(composed).items()
        if key not in left_out
    }
    text = StringIO()
    YAML().dump(kept, text)
    _compare(merged, _rename_tags(text.getvalue(), names), experiment)
    return merged


def _blocks(text, path):
    """The top-level keys of a file, in order."""
    lines = text.splitlines()
    try:
        tree = YAML().compose(text)
    except YAMLError as error:
        raise FlattenError(f"{path} is no YAML: {error}") from None
    starts = [(key.value, key.start_mark) for key, _ in tree.value]
    if tree.flow_style or any(mark.column for _, mark in starts):
        raise FlattenError(
            f"{path} cannot be merged as text: write each of its keys on a "
            "line of its own, not in braces."
        )
    ends = [mark.line for _, mark in starts[1:]] + [len(lines)]
    blocks, above = {}, lines[: starts[0][1].line]
    for (key, mark), end in zip(starts, ends, strict=True):
        body = lines[mark.line : end]
        size = len(body)
        # A block's last lines that begin with # belong to the next key.
        while size > 1 and (not body[size - 1] or body[size - 1][0] == "#"):
            size -= 1
        blocks[key] = Block(body[:size], above)
        above = body[size:]
    return blocks


def _lay_over(blocks, content, stage, path):
    for key, block in content.items():
        if key == f"stage{stage}":
            inner = dedent("\n".join(block.lines[1:]))
            if inner.strip():
                _lay_over(blocks, _blocks(inner, path), stage, path)
            elif not re.match(r"stage\d:\s*(#.*)?$", block.lines[0]):
                raise FlattenError(
                    f"{path} cannot be merged as text: write what is in {key} "
                    "on lines of its own, not in braces."
                )
        elif key not in ("stage1", "stage2"):
            there = blocks[key]
            if block.comment():
                own = block.above[len(block.above) - block.comment() :]
                there.above = there.without_comment() + own
            there.lines = block.lines


def _paragraph(lines):
    """Comment lines up to the first that is empty."""
    paragraph = []
    for line in lines:
        if not line.startswith("#") or line.strip() == "#":
            break
        paragraph.append(line)
    return paragraph


def _rename_tags(text, names):
    edits = []
    for token in YAML().scan(text):
        tag = re.fullmatch(r"(\w+:)(.+)", _suffix(token))
        if tag is None or not names.mentions().fullmatch(tag[2]):
            continue
        written = text[token.start_mark.index : token.end_mark.index]
        new = written.replace(tag[2], names.new(tag[2]))
        edits.append((token.start_mark.index, token.end_mark.index, new))
    return apply(text, edits)


def _suffix(token):
    if not isinstance(token, TagToken):
        return ""
    value = token.value
    return value[1] if isinstance(value, tuple) else value.suffix


def _compare(merged, composed, path):
    """Whether the merged text means what the files mean together."""
    resolved = resolve_references(merged, _GIVEN).getvalue()
    ours, theirs = YAML().load(resolved), YAML().load(composed)
    for key in sorted({*ours, *theirs}):
        if (
            key not in ours
            or key not in theirs
            or (meaning(ours[key]) != meaning(theirs[key]))
        ):
            raise FlattenError(
                f"{path} cannot be merged as text: {key} would mean something "
                "else than it does now."
            )


def meaning(node):
    """A node's tag and content, without comments and style."""
    tag = getattr(node, "tag", None)
    tag = str(tag.value) if tag is not None and tag.value else None
    if isinstance(node, dict):
        return tag, {key: meaning(value) for key, value in node.items()}
    if isinstance(node, list):
        return tag, [meaning(value) for value in node]
    return tag, str(getattr(node, "value", node))
