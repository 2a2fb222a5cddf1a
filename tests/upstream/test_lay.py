"""The contribution becomes four branches, beside what others have done."""

import re

import pytest

from upstream.lay import BRANCHES, HERE, LayError, files_of, git, lay

TOY = {
    "one": {"1": "Change the first line"},
    "two": {"2/a": "Add a file", "2/b": "Add another"},
    "three": {"3": "Add what stands on both"},
}
DIFF = """\
--- a/text
+++ b/text
@@ -1,3 +1,3 @@
-first
+FIRST
 second
 third
"""


def write(folder, **files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    write(folder / "1", **{"text.diff": DIFF})
    write(folder / "2/a", **{"lobes/a.py": "a = 1\n"})
    write(folder / "2/b", **{"lobes/b.py": "b = 1\n"})
    write(folder / "3", **{"recipe.py": "c = 1\n"})
    (folder / "3/link.py").symlink_to("recipe.py")
    return folder


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "--initial-branch", "develop")
    write(folder, text="first\nsecond\nthird\n")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "Begin")
    write(folder, text="first\nsecond\nthird\nnot committed\n")
    return folder


def show(checkout, branch, name="text"):
    return git(checkout, "show", f"{branch}:{name}")


def comment(checkout, branch, **files):
    """A commit of a reviewer on a branch."""
    tree = checkout.parent / "reviewer"
    git(checkout, "worktree", "add", tree, branch)
    write(tree, **files)
    git(tree, "add", ".")
    reviewer = "A reviewer <reviewer@example.org>"
    git(tree, "commit", "-m", "Say it otherwise", "--author", reviewer)
    git(checkout, "worktree", "remove", tree)
    return git(checkout, "rev-parse", branch)


def test_each_branch_has_its_commits_and_the_last_all(checkout, source):
    lay(checkout, source, TOY)
    subjects = [
        git(checkout, "log", "--format=%s", f"develop..{branch}").split("\n")
        for branch in ("one", "two")
    ]
    assert subjects == [
        ["Change the first line"],
        ["Add another", "Add a file"],
    ]
    assert show(checkout, "one") == "FIRST\nsecond\nthird"
    assert show(checkout, "two") == "first\nsecond\nthird"
    names = git(checkout, "diff", "--name-only", "develop", "three").split()
    everything = ["link.py", "lobes/a.py", "lobes/b.py", "recipe.py", "text"]
    assert names == everything
    assert git(checkout, "ls-tree", "three", "link.py").startswith("120000")


def test_what_is_checked_out_stays(checkout, source):
    lay(checkout, source, TOY)
    assert git(checkout, "branch", "--show-current") == "develop"
    assert (checkout / "text").read_text().endswith("not committed\n")
    assert git(checkout, "worktree", "list").count("\n") == 0


def test_the_same_is_laid_twice(checkout, source):
    first = lay(checkout, source, TOY)
    assert lay(checkout, source, TOY) == first


def test_a_reviewers_commit_stays_and_changes_come_on_top(checkout, source):
    lay(checkout, source, TOY)
    tip = comment(checkout, "two", **{"lobes/a.py": "a = 1  # why?\n"})
    assert lay(checkout, source, TOY)["two"] == tip
    assert show(checkout, "three", "lobes/a.py") == "a = 1  # why?"
    write(source / "2/b", **{"lobes/b.py": "b = 2\n"})
    lay(checkout, source, TOY)
    assert git(checkout, "rev-parse", "two~1") == tip
    assert show(checkout, "two", "lobes/a.py") == "a = 1  # why?"
    assert show(checkout, "two", "lobes/b.py") == "b = 2"
    # It is not laid once more.
    tip = git(checkout, "rev-parse", "two")
    assert lay(checkout, source, TOY)["two"] == tip


def test_a_reviewers_commit_stays_in_another_clone(checkout, source):
    lay(checkout, source, TOY)
    tip = comment(checkout, "two", **{"lobes/a.py": "a = 1  # why?\n"})
    other = checkout.parent / "other"
    git(checkout.parent, "clone", "--branch", "develop", checkout, other)
    git(other, "branch", "two", "origin/two")
    write(source / "2/b", **{"lobes/b.py": "b = 2\n"})
    lay(other, source, TOY)
    assert git(other, "rev-parse", "two~1") == tip
    assert show(other, "two", "lobes/a.py") == "a = 1  # why?"
    assert show(other, "two", "lobes/b.py") == "b = 2"


def test_a_reviewed_branch_follows_develop(checkout, source):
    lay(checkout, source, TOY)
    comment(checkout, "two", **{"lobes/a.py": "a = 1  # why?\n"})
    comment(checkout, "one", text="FIRST\nsecond, says one\nthird\n")
    git(checkout, "stash")
    write(checkout, text="first\nsecond\nthird\nfourth\n", other="\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "Go on")
    lay(checkout, source, TOY)
    for branch in ("one", "two"):
        assert show(checkout, branch, "other") == ""
    assert show(checkout, "one") == "FIRST\nsecond, says one\nthird\nfourth"
    names = git(checkout, "diff", "--name-only", "develop", "two").split()
    assert names == ["lobes/a.py", "lobes/b.py"]
    assert show(checkout, "two", "lobes/a.py") == "a = 1  # why?"


def test_where_both_change_a_line_the_reviewers_stays(checkout, source, capsys):
    lay(checkout, source, TOY)
    tip = comment(checkout, "two", **{"lobes/a.py": "a = 3\n"})
    write(source / "2/a", **{"lobes/a.py": "a = 2\n"})
    assert lay(checkout, source, TOY)["two"] == tip
    assert "two: others changed the same lines" in capsys.readouterr().out


def test_a_branch_of_another_origin_is_refused(checkout, source):
    git(checkout, "branch", "two")
    with pytest.raises(LayError, match="two is not of this script: rename it"):
        lay(checkout, source, TOY)


def test_a_branch_that_is_checked_out_is_refused(checkout, source):
    lay(checkout, source, TOY)
    git(checkout, "stash")
    git(checkout, "checkout", "one")
    with pytest.raises(LayError, match="one is checked out: switch to develop"):
        lay(checkout, source, TOY)


def test_only_a_clone_with_develop_will_do(tmp_path, checkout, source):
    with pytest.raises(LayError, match="is no clone of SpeechBrain"):
        lay(tmp_path, source, TOY)
    git(checkout, "branch", "--move", "main")
    with pytest.raises(LayError, match="has no branch develop: fetch it first"):
        lay(checkout, source, TOY)


def test_the_contribution_is_small():
    lines, names = 0, set()
    for part in (x for parts in BRANCHES.values() for x in parts):
        for name in files_of(HERE / part):
            path = HERE / part / name
            text = "a link\n" if path.is_symlink() else path.read_text()
            if name.suffix == ".diff":
                text = "\n".join(re.findall(r"^[+-](?![+-]).*$", text, re.M))
                name = name.with_suffix("")
            lines += text.count("\n")
            names.add(name)
    assert len(names) <= 25
    assert 1500 < lines <= 4500
    assert len((HERE / "lay.py").read_text().splitlines()) <= 300


def test_each_request_has_a_text_of_at_most_200_words():
    text = (HERE / "README.md").read_text()
    for branch in BRANCHES:
        section = re.search(rf"^## `{branch}`\n(.*?)^## ", text, re.M | re.S)
        assert section, branch
        assert 30 < len(section[1].split()) <= 200, branch
