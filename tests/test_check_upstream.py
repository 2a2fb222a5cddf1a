"""What ``make upstream`` says of the checks it has run."""

import sys
from pathlib import Path

import check_upstream
import pytest
from upstream.checks import Checks, linters, summary
from upstream.contribution import our_names
from upstream.reuse import examples
from upstream.suites import EACH_FAILS

HOOKS = """\
repos:
  - repo: https://github.com/pre-commit/pre-commit-hooks
    rev: v2.5.0
    hooks: [{id: trailing-whitespace}]
  - repo: https://github.com/astral-sh/ruff-pre-commit
    rev: v0.12.4
    hooks: [{id: ruff}]
"""


@pytest.fixture
def checks(tmp_path):
    """Checks that run the programs of this environment."""
    return Checks(tmp_path, Path(sys.executable).parent, [])


def test_a_check_that_fails_is_told_with_its_output(checks, capsys):
    checks.run("first", "python", "-c", "print('fine')")
    checks.run("second", "python", "-c", "print(1); print(2); exit(3)")
    assert [(name, passed) for name, passed, _ in checks.results] == [
        ("first", True),
        ("second", False),
    ]
    assert capsys.readouterr().out.split("\n--- ")[1] == "second\n1\n2\n\n"
    first, second = summary(checks.results).splitlines()
    assert first.split()[0] == "passed" and second.split()[0] == "FAILED"


def test_checks_see_nothing_of_the_caller_s_path(checks, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    program = "import sys; exit('/nowhere' in sys.path)"
    checks.run("path", "python", "-c", program)
    assert checks.results[0][1]


def test_a_program_that_succeeds_can_be_wrong_all_the_same(checks, capsys):
    for wrong in (None, "The loss does not fall."):
        checks.run("loss", "python", "-c", "", then=lambda wrong=wrong: wrong)
    assert [passed for _, passed, _ in checks.results] == [True, False]
    assert "The loss does not fall." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("bodies", "passed"),
    [("00", True), ("01", False), ("11", False), ("", False)],
)
def test_tests_of_a_fault_have_to_fail_each(checks, bodies, passed):
    tests = [
        f"def test_{index}():\n    assert {body}\n"
        for index, body in enumerate(bodies)
    ]
    (checks.folder / "test_fault.py").write_text("\n".join(tests))
    checks.run("faults", "python", "-c", EACH_FAILS, "test_fault.py")
    assert checks.results[0][1] == passed


def test_a_change_of_a_recipe_gets_the_names_that_upstream_has():
    document = Path("docs/reuse.md").read_text(encoding="utf-8")
    for example in examples(document):
        assert "emoq_modules." in example.diff
        assert "emoq_modules" not in example.renamed(our_names()).diff


def test_linters_have_the_versions_of_upstreams_hooks(tmp_path):
    (tmp_path / ".pre-commit-config.yaml").write_text(HOOKS)
    assert linters(tmp_path) == [
        "pre-commit-hooks==2.5.0",
        "ruff==0.12.4",
    ]


def test_a_folder_that_is_no_clone_is_refused(tmp_path, capsys):
    assert check_upstream.main([str(tmp_path)]) == 2
    assert "is not a checkout" in capsys.readouterr().err


@pytest.mark.parametrize(("passed", "status"), [(True, 0), (False, 1)])
def test_the_status_is_that_of_the_checks_and_the_rest_is_listed(
    monkeypatch, capsys, passed, status
):
    def check(checkout, scratch, results):
        results.append(("hook ruff", passed, 0.0))

    monkeypatch.setattr(check_upstream.to_speechbrain, "main", lambda _: 0)
    monkeypatch.setattr(check_upstream, "_check", check)
    assert check_upstream.main(["somewhere"]) == status
    out = capsys.readouterr().out
    assert "hook ruff" in out
    assert "Result links" in out and "Released weights" in out
