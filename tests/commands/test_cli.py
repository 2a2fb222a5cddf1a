"""The ``emoq`` command: what it says of itself, and how it completes."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import emoq_modules
from emoq_modules.commands.cli import _make_parser, main

ROOT = Path(__file__).parents[2]
COMMANDS = _make_parser()[1]


def leaves(arguments):
    """The status with which argparse ends the program."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return left.value.code


def examples(text):
    """The command lines of an epilogue, those over two lines joined."""
    text = text.partition("examples:\n")[2].replace("\\\n", " ")
    return [
        re.split(r" [|>] ", line[line.index("emoq ") :])[0]
        for line in text.splitlines()
        if re.match(r"  (\S.* \| )?emoq ", line)
    ]


# --- What it says -------------------------------------------------------------


def test_without_arguments_it_prints_the_overview_and_has_not_succeeded(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert leaves(["--help"]) == 0
    assert capsys.readouterr().out == captured.err


def test_the_overview_has_a_line_and_an_example_of_each_command(capsys):
    main([])
    overview = capsys.readouterr().err
    for name in COMMANDS:
        assert re.search(rf"^    {name} +\w.*", overview, re.MULTILINE)
        assert re.search(rf"^  emoq {name} .*", overview, re.MULTILINE)
    assert max(map(len, overview.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_terminal_and_its_examples_are_understood(
    name, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    assert leaves([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    found = examples(text)
    assert found, f"emoq {name} --help gives no examples"
    for line in found:
        program, *arguments = shlex.split(line)
        assert (program, arguments[0]) == ("emoq", name)
        _make_parser()[0].parse_known_args(arguments)


def test_the_version_is_that_of_the_package(capsys):
    assert leaves(["--version"]) == 0
    printed = capsys.readouterr().out
    assert printed == f"emoq {emoq_modules.__version__}\n"
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f'version="{emoq_modules.__version__}"' in setup


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reprodcue", "table4"], "no command 'reprodcue'; did you mean 'repr"),
        (["xyz"], "no command 'xyz'; see emoq --help"),
        (["--dry_run"], "required: COMMAND"),
        (["reproduce"], "required: TABLE"),
        (["reproduce", "table7"], "invalid choice: 'table7'"),
    ],
)
def test_a_mistake_is_answered(capsys, arguments, message):
    assert leaves(arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_help_does_not_wait_for_the_heavy_imports():
    code = (
        "import sys; from emoq_modules.commands.cli import main; main([]);"
        "print(*{'torch', 'speechbrain', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "\n", done.stderr


# --- How it completes ---------------------------------------------------------


def completions(line, file):
    """What the shell is told after Tab at the end of a line."""
    pytest.importorskip("argcomplete", reason="the extra `completion`")
    settings = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(file),
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    subprocess.run(
        [sys.executable, "-m", "emoq_modules"],
        cwd=ROOT,
        env={**os.environ, **settings},
        check=True,
        timeout=60,
    )
    return file.read_text().split("\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("emoq ", list(COMMANDS)),
        ("emoq --ver", ["--version"]),
        ("emoq reproduce ", [f"table{number}" for number in range(1, 7)]),
        ("emoq reproduce table4 --preset tests/tiny.", ["tests/tiny.yaml"]),
        ("emoq reproduce table4 --preset tests/tiny.yaml --dry", ["--dry_run"]),
    ],
)
def test_the_shell_completes(tmp_path, line, expected):
    assert completions(line, tmp_path / "completions") == expected
