"""All files of the contribution, as upstream is to have them."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from emoq_modules import _PUBLIC
from upstream import table
from upstream.checkout import Part
from upstream.flatten import flatten
from upstream.idiom import signed, with_logger
from upstream.imports import MoveError, Names, inline, rewrite
from upstream.patch import patched
from upstream.recipe_rows import row_of, with_rows

ROOT = Path(__file__).parents[2]
FILES = Path(__file__).with_name("files")

_FILE, _PROGRAM, _LINK = "100644", "100755", "120000"


def contribution(checkout):
    """Builds the branches: the correction, and the series in its order.

    Arguments
    ---------
    checkout : Checkout
        For what upstream has, and how it formats its code.

    Returns
    -------
    list of Part

    Raises
    ------
    ConfigurationError, FlattenError, MoveError
        If a file of ours cannot become one of upstream's.
    """
    names = our_names()
    series = [
        _modules(table.LOSSES, names, python38=True),
        _modules(table.MODULES, names) | _package(names),
        _modules(table.TRAINING, names),
        _recipes(checkout, names),
    ]
    tables = {f"tests/recipes/{corpus}.csv" for corpus in table.RECIPES}
    settings = checkout.read("pyproject.toml")
    parts = [_correction(checkout, settings)]
    before = None
    for (branch, message), files in zip(
        table.SERIES.items(), series, strict=True
    ):
        files = _checked(_formatted(files, settings))
        # Where upstream has rows of the corpus already, they stay.
        extended = frozenset(tables & files.keys())
        parts.append(Part(branch, message, files, before, extended))
        before = branch
    return parts


def branches():
    """Names of all branches that the contribution has."""
    return [table.PATCH["branch"], *table.SERIES]


def _correction(checkout, settings):
    """Upstream's own files as they should be, with tests of each fault."""
    patch = table.PATCH
    corrected = patched(checkout, FILES / patch["diff"])
    files = {
        path: (checkout.at_base[path][0], text)
        for path, text in corrected.items()
    }
    links = {path: (_LINK, to) for path, to in patch["links"].items()}
    tests = {path: (_FILE, _own(name)) for name, path in patch["tests"].items()}
    return Part(
        patch["branch"],
        patch["message"],
        _checked(files | links | _formatted(tests, settings)),
        changes=frozenset({*files, *links}),
    )


def our_names():
    """What the table says that names become."""
    places = {**table.LOSSES, **table.MODULES, **table.TRAINING}
    modules = {
        # Test files see each other by their bare names.
        ours: theirs.rpartition(".")[2] if _is_test(ours) else theirs
        for ours, theirs in places.items()
    }
    return Names({**modules, **table.PREPARE}, _PUBLIC, table.RENAMED)


def _is_test(module):
    return module.startswith("test_")


def _source(module):
    folder = "tests." if _is_test(module) else ""
    path = ROOT / f"{(folder + module).replace('.', '/')}.py"
    return path.read_text(encoding="utf-8")


def _moved(module, names, **options):
    try:
        return rewrite(
            _source(module),
            names,
            table.REWORDED.get(module),
            table.LEFT_OUT_TESTS.get(module, ()),
            **options,
        )
    except MoveError as error:
        raise MoveError(f"{module}: {error}") from None


def _modules(places, names, **options):
    return {
        f"{theirs.replace('.', '/')}.py": (
            _FILE,
            _moved(ours, names, **options),
        )
        for ours, theirs in places.items()
    }


def _own(name, names=None):
    """A file that is written for upstream."""
    text = (FILES / name).read_text(encoding="utf-8")
    return text if names is None else rewrite(text, names)


def _package(names):
    folder = table.EMOQ.replace(".", "/")
    return {
        f"{folder}/__init__.py": (_FILE, _own("emoq_init.py")),
        "speechbrain/integrations/tests/conftest.py": (
            _FILE,
            _own("integrations_conftest.py", names),
        ),
    }


def _recipes(checkout, names):
    script = _own("train.py")
    for module in table.INLINED:
        script = inline(script, _source(module), module)
    script = rewrite(script, names)
    tiny = rewrite(_own("tiny_models.py"), names)
    files = {}
    for corpus, recipe in table.RECIPES.items():
        folder = f"recipes/{corpus}/EmoQ"
        prepare = table.PREPARE[recipe["prepare"]]
        readme = _own(f"README_{corpus}.md") + _own("README_end.md")
        required = _requirements(recipe["requirements"])
        files |= {
            f"{folder}/train.py": (_FILE, script),
            f"{folder}/README.md": (_FILE, readme),
            f"{folder}/extra_requirements.txt": (_FILE, required),
            # As upstream has it: the script lies with the corpus, and each of
            # its recipes has a link.
            f"recipes/{corpus}/{prepare}.py": (
                _FILE,
                _moved(recipe["prepare"], names),
            ),
            f"{folder}/{prepare}.py": (_LINK, f"../{prepare}.py"),
        }
        setups = f"tests/recipes/setup/{folder.replace('/', '_')}_train"
        rows, maker, labels = [], None, {}
        for name, preset in recipe["presets"].items():
            for stage, experiment in table.EXPERIMENTS.items():
                yaml = f"hparams/{name}_stage{stage}"
                text = flatten(
                    ROOT / experiment,
                    [ROOT / preset],
                    f"python train.py {yaml}.yaml {recipe['options']}",
                    names,
                    table.LEFT_OUT_KEYS,
                )
                files[f"{folder}/{yaml}.yaml"] = _FILE, text
                # One program makes what all of them need.
                setup = f"{setups}/{yaml.replace('/', '_')}"
                if maker is not None:
                    files[setup] = _LINK, maker.rpartition("/")[2]
                maker = maker or setup
                labels[name] = _labels(text)
                rows.append(row_of(corpus, folder, yaml, prepare, name, stage))
        files[maker] = _PROGRAM, _filled_in(tiny, labels)
        files[f"tests/recipes/{corpus}.csv"] = (
            _FILE,
            with_rows(checkout, f"tests/recipes/{corpus}.csv", rows),
        )
    return files


def _filled_in(program, labels):
    gap = "LABELS = {}  # filled in from the YAMLs"
    if program.count(gap) != 1:
        raise MoveError(f"files/tiny_models.py has no line {gap!r}")
    return program.replace(gap, f"LABELS = {labels!r}")


def _labels(text):
    words = re.search(r"^labels: \[(.*)\]", text, re.MULTILINE)[1]
    return words.split(", ")


def _requirements(more):
    """Lines of ``extra_requirements.txt``, with the bounds of our setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    bounds = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    lines = []
    for name in sorted([*table.REQUIREMENTS, *more]):
        line = next(b for b in bounds if re.match(rf"{name}[<>=]", b))
        lines.append(line)
    return "\n".join(lines) + "\n"


def _formatted(files, settings):
    """Makes code look as upstream's: authors, logger, imports, lines."""
    programs = {
        path: text
        for path, (mode, text) in files.items()
        if mode != _LINK and (path.endswith(".py") or text.startswith("#!"))
    }
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "pyproject.toml").write_text(settings, encoding="utf-8")
        # A program without a suffix is Python to us alone.
        places = {
            p: folder / (p if p.endswith(".py") else f"{p}.py")
            for p in programs
        }
        for path, text in programs.items():
            places[path].parent.mkdir(parents=True, exist_ok=True)
            text = signed(with_logger(text), table.AUTHORS)
            places[path].write_text(text, encoding="utf-8")
        fix = ["check", "--quiet", "--fix", "--select", "I,F401"]
        for command in (fix, ["format", "--quiet"]):
            done = subprocess.run(
                [sys.executable, "-m", "ruff", *command, "."],
                cwd=folder,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise MoveError(
                    f"ruff {command[0]} fails on what was moved: "
                    f"{(done.stdout + done.stderr).strip()[:500]}"
                )
        files = dict(files)
        for path, place in places.items():
            text = place.read_text(encoding="utf-8")
            files[path] = files[path][0], text
    return files


def _checked(files):
    """The files' bytes, if nothing of our package is named in them."""
    for path, (_, text) in files.items():
        for number, line in enumerate(text.splitlines(), 1):
            if "emoq_modules" in line:
                raise MoveError(
                    f"{path}, line {number}, would still name emoq_modules: "
                    f"{line.strip()}"
                )
    return {p: (mode, text.encode()) for p, (mode, text) in files.items()}
