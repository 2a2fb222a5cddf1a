"""The contribution is laid over a clone of SpeechBrain, or refused."""

import os
from dataclasses import replace

import pytest
import to_speechbrain
from upstream import table
from upstream.checkout import Checkout, CheckoutError, Part, blob
from upstream.imports import MoveError
from upstream.patch import patched
from upstream_clone import (
    BRANCHES,
    COPY,
    CORRECTED,
    CORRECTION,
    DIFF,
    FAULT,
    FAULTY,
    HEADER,
    PYPROJECT,
    ROW,
    commit,
    git,
    state,
    write,
)


def test_the_series_has_a_branch_and_a_commit_for_each_part(laid):
    assert git(laid, "rev-parse", "--abbrev-ref", "HEAD") == BRANCHES[-1]
    for before, branch in zip(["develop", *BRANCHES], BRANCHES, strict=False):
        assert git(laid, "rev-list", "--count", f"{before}..{branch}") == "1"
    files = {
        branch: git(laid, "show", "--name-only", "--format=", branch).split()
        for branch in BRANCHES
    }
    first, second, _, last = files.values()
    assert "speechbrain/nnet/loss/mal_loss.py" in first
    assert not any("integrations" in path for path in first)
    assert all(path.startswith("speechbrain/integrations/") for path in second)
    assert {path.split("/")[0] for path in last} == {"recipes", "tests"}
    assert git(laid, "status", "--porcelain") == ""


def test_a_second_time_changes_nothing(laid, capsys):
    before = state(laid)
    assert to_speechbrain.main([str(laid)]) == 0
    assert "nothing has changed" in capsys.readouterr().out
    assert state(laid) == before


def test_the_same_contribution_has_the_same_commits_again(laid, capsys):
    before = git(laid, "rev-parse", *BRANCHES)
    git(laid, "checkout", "-q", "develop")
    git(laid, "branch", "-D", *BRANCHES)
    assert to_speechbrain.main([str(laid)]) == 0
    assert git(laid, "rev-parse", *BRANCHES) == before


def test_what_has_changed_here_is_laid_anew(clone):
    for content in (b"1", b"2"):
        parts = [Part("a", "A", {"a.py": ("100644", content)})]
        parts += [Part("b", "B", {"b/c.py": ("100755", content)}, "a")]
        assert Checkout(clone, ["a", "b"]).lay(parts)
        assert not Checkout(clone, ["a", "b"]).lay(parts)
        assert (clone / "b/c.py").read_bytes() == content
        assert git(clone, "status", "--porcelain") == ""
        assert git(clone, "log", "--format=%s", "develop..HEAD") == "B\nA"


def test_upstreams_progress_is_what_the_series_is_laid_on_next(clone):
    parts = [Part("a", "A", {"a.py": ("100644", b"1")})]
    Checkout(clone, ["a"]).lay(parts)
    git(clone, "checkout", "-q", "develop")
    write(clone, "news.txt")
    commit(clone)
    assert Checkout(clone, ["a"]).lay(parts)
    assert git(clone, "rev-parse", "a~") == git(clone, "rev-parse", "develop")


def test_the_correction_lies_on_develop_by_itself(laid):
    assert git(laid, "rev-parse", f"{CORRECTION}~") == git(
        laid, "rev-parse", "develop"
    )
    assert git(laid, "show", f"{CORRECTION}:{FAULTY}") == CORRECTED.strip()
    # Where upstream has the file twice there is a link to the one.
    entry = git(laid, "ls-tree", CORRECTION, COPY)
    assert entry.startswith("120000")
    assert git(laid, "show", f"{CORRECTION}:{COPY}") == "../prepare.py"
    changed = git(laid, "diff", "--name-only", "develop", CORRECTION).split()
    assert set(changed) == {FAULTY, COPY, *table.PATCH["tests"].values()}
    assert git(laid, "show", f"HEAD:{FAULTY}") == FAULT.strip()


def test_correction_and_series_can_be_merged_in_any_order(laid):
    git(laid, "merge-tree", "--write-tree", CORRECTION, BRANCHES[-1])


def test_a_diff_that_names_no_blobs_is_refused(clone, tmp_path):
    diff = tmp_path / "short.patch"
    diff.write_text(DIFF.replace(blob(FAULT.encode()), "1234567"))
    with pytest.raises(MoveError, match="is not what git diff"):
        patched(Checkout(clone, []), diff)


def not_speechbrain(folder):
    """Another project."""
    git(folder, "rm", "-q", "speechbrain/version.txt")
    commit(folder)


def ignored(folder):
    """A person's own file, which git was told to pass over."""
    (folder / ".git/info/exclude").write_text("/recipes/MELD/\n")
    write(folder, "recipes/MELD/meld_prepare.py", "# mine\n")


def read_only(folder):
    """A folder in which nothing can be made."""
    if os.geteuid() == 0:
        # Nothing is read-only to root: a file in the place of a folder is.
        (folder / ".git/info/exclude").write_text("/recipes/MELD\n")
        write(folder, "recipes/MELD")
    else:
        (folder / "recipes").chmod(0o555)


def old(folder):
    """A version before the minimum."""
    write(folder, "speechbrain/version.txt", "1.0.3\n")
    commit(folder)


def dirty(folder):
    """A change that is not committed."""
    write(folder, "pyproject.toml", PYPROJECT + "# mine\n")


def untracked(folder):
    """A file that git does not know."""
    write(folder, "notes.txt")


def moved(folder):
    """A file of upstream's that lies elsewhere now."""
    git(folder, "mv", "conftest.py", "tests/conftest.py")
    commit(folder)


def taken(folder):
    """A file of upstream's where one of ours is to be."""
    write(folder, "speechbrain/nnet/loss/mal_loss.py", "# theirs\n")
    commit(folder)


def corrected(folder):
    """Upstream has seen to what the correction is about."""
    write(folder, FAULTY, CORRECTED)
    commit(folder)


def elsewhere(folder):
    """Another branch, with a commit of its own."""
    git(folder, "checkout", "-qb", "mine")
    write(folder, "notes.txt")
    commit(folder)


def without_develop(folder):
    """A clone of another branch."""
    git(folder, "branch", "-m", "main")


def continued(folder):
    """Somebody's own commit on a branch of the series."""
    git(folder, "checkout", "-qb", BRANCHES[-1])
    write(folder, "notes.txt")
    commit(folder)
    git(folder, "checkout", "-q", "develop")


def other_columns(folder):
    """A table of recipe tests of another form."""
    text = HEADER.replace("test_debug_flags", "flags") + ROW
    write(folder, "tests/recipes/IEMOCAP.csv", text)
    commit(folder)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (not_speechbrain, "is not a checkout of speechbrain/speechbrain"),
        (ignored, "git checkout failed"),
        (read_only, "git checkout failed"),
        (old, "is SpeechBrain 1.0.3; the contribution needs 1.1.0"),
        (dirty, "has 1 changes that are not committed"),
        (untracked, "notes.txt': commit them, put them away"),
        (moved, "has no conftest.py: upstream has moved it"),
        (taken, "mal_loss.py is upstream's already"),
        (corrected, f"{FAULTY} is not the file that small.patch was made from"),
        (elsewhere, "is neither branch develop nor"),
        (without_develop, "has no branch develop"),
        (continued, "holds commits that this command did not make"),
        (other_columns, "has no column test_debug_flags"),
    ],
)
def test_a_checkout_that_will_not_do_is_refused_untouched(
    clone, spoil, says, capsys
):
    spoil(clone)
    before = state(clone)
    assert to_speechbrain.main([str(clone)]) == 2
    assert says in capsys.readouterr().err
    assert state(clone) == before


def test_a_branch_in_use_in_another_work_tree_is_not_moved(clone, capsys):
    part = Part("a", "A", {"a.py": ("100644", b"1")})
    Checkout(clone, ["a"]).lay([part])
    git(clone, "checkout", "-q", "develop")
    git(clone, "worktree", "add", "-q", "../elsewhere", "a")
    before = state(clone)
    changed = replace(part, files={"a.py": ("100644", b"2")})
    with pytest.raises(CheckoutError, match="a is checked out in .*elsewhere"):
        Checkout(clone, ["a"]).lay([changed])
    assert state(clone) == before


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    assert to_speechbrain.main([str(tmp_path / "nowhere")]) == 2
    assert "There is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{corpus: iemocap4}", "cannot be merged as text"),
        ("corpus: x\nnonsense: 1\n", "is no key of this experiment"),
        ("corpus: x\nstage1: {lr: 0.1}\n", "cannot be merged as text"),
        ("corpus: [", "is no YAML"),
        ("corpus: x\naudio_encoder: !new:emoq_modules.Stage1Brain\n", "place"),
    ],
)
def test_a_preset_that_cannot_be_flattened_is_refused(
    clone, tmp_path, text, says, monkeypatch, capsys
):
    write(tmp_path, "preset.yaml", text)
    recipe = {**table.RECIPES["IEMOCAP"]}
    recipe["presets"] = {"iemocap4": tmp_path / "preset.yaml"}
    monkeypatch.setattr(table, "RECIPES", {"IEMOCAP": recipe})
    before = state(clone)
    assert to_speechbrain.main([str(clone)]) == 2
    assert says in capsys.readouterr().err
    assert state(clone) == before
