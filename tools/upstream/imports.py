"""Gives Python source other module names, at the positions of its syntax tree.

Besides imports, names of modules stand in docstrings, in the strings of tests
and in comments; these are found as tokens, and each must be one of the table.
"""

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field

_TEXT = {
    tokenize.STRING,
    tokenize.COMMENT,
    getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING),  # from Python 3.12
}


class MoveError(ValueError):
    """A file cannot be moved; the message is for the person."""


@dataclass(frozen=True)
class Names:
    """What names of ours become.

    Arguments
    ---------
    modules : dict
        Dotted names of modules, ours and theirs.
    public : dict
        Names that our package offers itself, and the module of each.
    renamed : dict
        Names that stand for a built-in one.
    package : str
        Our package, of which nothing may be left.
    """

    modules: dict
    public: dict = field(default_factory=dict)
    renamed: dict = field(default_factory=dict)
    package: str = "emoq_modules"

    def new(self, dotted):
        """The new name of a module or of what is in one.

        Raises
        ------
        MoveError
            If the table has none.
        """
        parts = dotted.split(".")
        if parts[0] == self.package and parts[1] in self.public:
            parts[1:1] = [self.public[parts[1]]]
        for size in range(len(parts), 0, -1):
            module = self.modules.get(".".join(parts[:size]))
            if module is not None:
                return ".".join([module, *parts[size:]])
        raise MoveError(
            f"{dotted} has no place upstream: give it one in "
            "tools/upstream/table.py"
        )

    def mentions(self):
        """A pattern of our dotted names, as they stand in text."""
        roots = {name.rpartition(".")[0] for name in self.modules} - {""}
        names = "|".join(re.escape(root) for root in sorted(roots))
        return re.compile(rf"\b(?:{names})(?:\.\w+)+")


def rewrite(source, names, reworded=None, left_out=(), python38=False):
    """Moves a module's source.

    Arguments
    ---------
    source : str
        Python.
    names : Names
        What names become.
    reworded : dict | None
        Texts of strings and comments, ours and theirs; each is there once.
    left_out : set of str
        Functions and constants of the top level to leave out.
    python38 : bool
        Whether ``strict`` is to be taken from ``zip``, which is Python 3.10's.

    Returns
    -------
    str

    Raises
    ------
    MoveError
        If a name has no new one, or something to change is not there.

    Example
    -------
    >>> names = Names({"emoq_modules.losses": "speechbrain.nnet.loss.mal_loss"})
    >>> rewrite("from emoq_modules.losses import MALLoss as Loss", names)
    'from speechbrain.nnet.loss.mal_loss import MALLoss as Loss'
    """
    source = _leave_out(source, set(left_out))
    tree = ast.parse(source)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    position = _positions(source)
    edits = []
    for node in ast.walk(tree):
        span = position(node) if hasattr(node, "end_col_offset") else None
        if isinstance(node, ast.Import | ast.ImportFrom):
            lines = _moved_import(node, names, used if left_out else None)
            if lines is not None:
                indent = "\n" + " " * node.col_offset
                edits.append((*span, indent.join(lines)))
        elif isinstance(node, ast.Name) and node.id in names.renamed:
            edits.append((*span, names.renamed[node.id]))
        elif _is_undocumented_test(node):
            first = node.body[0]
            indent = " " * first.col_offset
            start = position(first)[0]
            edits.append((start, start, f"{_sentence(node.name)}\n{indent}"))
        elif python38 and _is_strict_zip(node):
            last = position(node.args[-1])[1]
            edits.append((last, position(node.keywords[-1])[1], ""))
    edits += _edits_of_text(source, names, reworded or {})
    return apply(source, edits)


def apply(source, edits):
    """Replaces ``(start, end, text)``; what lies within another edit goes."""
    done = len(source)
    for start, end, text in sorted(edits, key=lambda e: (-e[1], e[0])):
        if end <= done:
            source = source[:start] + text + source[end:]
            done = start
    return source


def inline(source, module_source, module):
    """Puts a module's own text where a script imports it.

    Arguments
    ---------
    source : str
        The script.
    module_source : str
        The module.
    module : str
        Its dotted name.

    Returns
    -------
    str
        The script; its imports are still to be sorted.
    """
    script, inner = ast.parse(source), ast.parse(module_source)
    imports = [n for n in inner.body if _is_import(n)]
    body_start = max(node.end_lineno for node in imports)
    position = _positions(source)
    there = {ast.dump(node) for node in inner.body}
    # The docstring of the module says what its classes have in common.
    edits = []
    for node in script.body:
        if isinstance(node, ast.ImportFrom) and node.module == module:
            texts = [ast.get_source_segment(module_source, n) for n in imports]
            edits.append((*position(node), "\n".join(texts)))
        elif ast.dump(node) in there and not _is_import(node):
            edits.append((*position(node), ""))
    last = max(n.end_lineno for n in script.body if _is_import(n))
    at = sum(len(line) for line in source.splitlines(True)[:last])
    body = "".join(module_source.splitlines(True)[body_start:])
    edits.append((at, at, f"\n{body}\n"))
    return apply(source, edits)


def _is_import(node):
    return isinstance(node, ast.Import | ast.ImportFrom)


def _is_undocumented_test(node):
    return (
        isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and ast.get_docstring(node) is None
    )


def _sentence(name):
    """The docstring that upstream wants of a test, whose name is a sentence."""
    words = name.removeprefix("test_").replace("_", " ")
    return f'"""{words[0].upper()}{words[1:]}."""'


def _is_strict_zip(node):
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "zip"
        and [keyword.arg for keyword in node.keywords] == ["strict"]
    )


def _moved_import(node, names, used=None):
    """The statements in place of an import, or None if it stays.

    With ``used``, names that are not among these are left out.
    """
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.split(".")[0] == names.package:
                raise MoveError(
                    f"line {node.lineno}: write 'from {alias.name} import ...'"
                )
        return None
    ours = node.module == names.package or node.module in names.modules
    if not ours and not f"{node.module}.".startswith(f"{names.package}."):
        return None
    moved = {}
    for alias in node.names:
        if alias.name in names.renamed:
            continue
        known_as = alias.asname or alias.name
        if used is not None and known_as not in used:
            continue
        there = names.new(f"{node.module}.{alias.name}")
        module, _, name = there.rpartition(".")
        moved.setdefault(module, []).append(
            name if name == known_as else f"{name} as {known_as}"
        )
    return [
        f"from {module} import {', '.join(imported)}"
        for module, imported in moved.items()
    ]


def _edits_of_text(source, names, reworded):
    mentions = names.mentions()
    position = _positions(source)
    found = dict.fromkeys(reworded, 0)
    edits = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _TEXT:
            continue
        text = token.string
        for ours, theirs in reworded.items():
            found[ours] += text.count(ours)
            text = text.replace(ours, theirs)
        text = _EXAMPLE_IMPORT.sub(lambda m: _moved_example(m, names), text)
        text = mentions.sub(lambda match: names.new(match[0]), text)
        for ours, theirs in names.renamed.items():
            text = re.sub(rf"\b{ours}\b", theirs, text)
        if text != token.string:
            edits.append((*position(token), text))
    for ours, times in found.items():
        if times != 1:
            raise MoveError(
                f"{ours!r}, which upstream says otherwise, is there {times} "
                "times and not once: correct REWORDED in the table"
            )
    return edits


# ">>> from emoq_modules import A, B": an import in a docstring's example.
_EXAMPLE_IMPORT = re.compile(r"^([ ]*>>> )(from \w+ import [\w, ]+)$", re.M)


def _moved_example(match, names):
    lines = _moved_import(ast.parse(match[2]).body[0], names)
    return match[0] if lines is None else match[1] + f"\n{match[1]}".join(lines)


def _leave_out(source, left_out):
    """Removes definitions, with their decorators and the comment above."""
    lines = source.splitlines(True)
    edits = []
    for node in ast.parse(source).body:
        here = left_out & _defined(node)
        if not here:
            continue
        left_out = left_out - here
        decorators = getattr(node, "decorator_list", [])
        first = min(n.lineno for n in [node, *decorators]) - 1
        while first and lines[first - 1].startswith("#"):
            first -= 1
        start = sum(map(len, lines[:first]))
        edits.append((start, sum(map(len, lines[: node.end_lineno])), ""))
    if left_out:
        raise MoveError(
            f"{', '.join(sorted(left_out))}, which is to be left out, is not "
            "there: correct LEFT_OUT_TESTS in the table"
        )
    return apply(source, edits)


def _defined(node):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {t.id for t in node.targets if isinstance(t, ast.Name)}
    return set()


def _positions(source):
    """Makes of a node or a token its span in the source, in characters."""
    lines = source.splitlines(True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def span(item):
        if isinstance(item, tokenize.TokenInfo):
            return tuple(
                starts[row - 1] + col for row, col in (item.start, item.end)
            )
        ends = (
            (item.lineno, item.col_offset),
            (item.end_lineno, item.end_col_offset),
        )
        # The tree counts bytes.
        return tuple(
            starts[row - 1] + len(lines[row - 1].encode()[:col].decode())
            for row, col in ends
        )

    return span
