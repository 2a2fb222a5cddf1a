"""A clone of speechbrain/speechbrain: what is refused, and how commits come.

The commits are made by ``git fast-import`` under ``refs/emoq/``, beside
everything else; only when all are there do branches and files follow.
"""

import hashlib
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from upstream.table import MINIMUM_VERSION, NEEDED

_VERSION = "speechbrain/version.txt"
_LAID = "refs/emoq/{}"


class CheckoutError(ValueError):
    """The checkout cannot be used; the message is for the person."""


@dataclass(frozen=True)
class Part:
    """A branch with one commit of ours.

    Arguments
    ---------
    branch, message : str
        Its name, and what the commit says.
    files : dict
        Mode and content (bytes) by path.
    onto : str | None
        The part before, on which it lies; None is branch develop itself.
    changes : set of str
        Upstream's own files that it may change.
    """

    branch: str
    message: str
    files: dict
    onto: str = None
    changes: frozenset = frozenset()


class Checkout:
    """A git work tree of SpeechBrain.

    Arguments
    ---------
    folder : str or Path
        Its root.
    branches : list of str
        Names of the branches to lay.

    Raises
    ------
    CheckoutError
        If it is none, is too old, has changes that are not committed, or is
        not where the series can begin.
    """

    def __init__(self, folder, branches):
        self.folder, self.branches = Path(folder), list(branches)
        self._check_version()
        self._check_clean()
        self.base = self._develop()
        self._check_head()
        # "mode type object<TAB>path"
        tree = self._git("ls-tree", "-r", "-z", self.base).rstrip("\0")
        self.at_base = {
            path: tuple(entry.split()[::2])
            for entry, path in (line.split("\t") for line in tree.split("\0"))
        }
        moved = [path for path in NEEDED if path not in self.at_base]
        if moved:
            raise CheckoutError(
                f"{self.folder} has no {', no '.join(moved)}: upstream has "
                "moved it. Correct tools/upstream/table.py."
            )

    def read(self, path):
        """A text file as it is upstream."""
        return self._git("show", f"{self.base}:{path}", strip=False)

    def lay(self, parts):
        """Makes a commit and a branch of each part, and checks the last out.

        Arguments
        ---------
        parts : list of Part
            In an order in which none comes before the one it lies on.

        Returns
        -------
        bool
            Whether anything has changed.

        Raises
        ------
        CheckoutError
            If a file is in the way, or git refuses; branches and files are
            then as they were.
        """
        self._check_paths(parts)
        last = parts[-1].branch
        is_laid = self._is_laid(parts)
        if is_laid and self._head() == f"refs/heads/{last}":
            return False
        self._check_worktrees()
        with self._as_it_was_on_failure(parts):
            if not is_laid:
                self._git(
                    *("fast-import", "--quiet", "--force"),
                    stdin=self._stream(parts),
                )
            self._git(
                *("checkout", "--quiet", "--detach"),
                *("--no-overwrite-ignore", _LAID.format(last)),
            )
        for part in parts:
            self._git(
                "update-ref",
                f"refs/heads/{part.branch}",
                _LAID.format(part.branch),
            )
        self._git("symbolic-ref", "HEAD", f"refs/heads/{last}")
        return True

    @contextmanager
    def _as_it_was_on_failure(self, parts):
        """Puts everything back where laying fails, or is interrupted.

        A disk may be full, or a folder closed. Before, the work tree was clean.
        """
        head, before = self._head(), self._commit("HEAD")
        refs = [_LAID.format(part.branch) for part in parts]
        laid = {ref: self._commit(ref) for ref in refs}
        try:
            yield
        except (CheckoutError, KeyboardInterrupt):
            if head:
                self._git("symbolic-ref", "HEAD", head, check=False)
            self._git("reset", "--quiet", "--hard", before, check=False)
            made = {path for part in parts for path in part.files}
            new = sorted(made - self.at_base.keys())
            self._git("clean", "-fdq", "--", *new, check=False)
            for ref, commit in laid.items():
                change = (ref, commit) if commit else ("-d", ref)
                self._git("update-ref", *change, check=False)
            raise

    def _check_worktrees(self):
        """No branch of ours may move underneath another work tree."""
        listed = self._git("worktree", "list", "--porcelain").split("\n\n")
        for tree in listed:
            folder, *lines = tree.splitlines()
            folder = Path(folder.removeprefix("worktree "))
            for branch in self.branches:
                if (
                    f"branch refs/heads/{branch}" in lines
                    and folder.resolve() != self.folder.resolve()
                ):
                    raise CheckoutError(
                        f"Branch {branch} is checked out in {folder}: switch "
                        "that work tree to another branch first."
                    )

    def _check_version(self):
        file = self.folder / _VERSION
        if not self.folder.is_dir():
            raise CheckoutError(f"There is no folder {self.folder}.")
        if (self.folder / ".git").exists():
            # As git says why it will not read it: another owner's, for one.
            self._git("rev-parse", "--git-dir")
        top = self._git("rev-parse", "--show-toplevel", check=False)
        if not file.is_file() or Path(top) != self.folder.resolve():
            raise CheckoutError(
                f"{self.folder} is not a checkout of speechbrain/speechbrain: "
                f"it has no {_VERSION} at the root of a git repository. Clone "
                "branch develop of "
                "https://github.com/speechbrain/speechbrain."
            )
        version = file.read_text(encoding="utf-8").strip()
        try:
            numbers = tuple(int(part) for part in version.split(".")[:3])
        except ValueError:
            numbers = ()
        if numbers < MINIMUM_VERSION:
            raise CheckoutError(
                f"{self.folder} is SpeechBrain {version}; the contribution "
                f"needs {'.'.join(map(str, MINIMUM_VERSION))} or later. Pull "
                "branch develop."
            )

    def _check_clean(self):
        changed = self._git("status", "--porcelain").splitlines()
        if changed:
            raise CheckoutError(
                f"{self.folder} has {len(changed)} changes that are not "
                f"committed, for one '{changed[0].strip()}': commit them, put "
                "them away (git stash --include-untracked) or delete them."
            )

    def _develop(self):
        for ref in ("refs/heads/develop", "refs/remotes/origin/develop"):
            base = self._commit(ref)
            if base:
                return base
        raise CheckoutError(
            f"{self.folder} has no branch develop: clone it with --branch "
            "develop."
        )

    def _check_head(self):
        head = self._commit("HEAD")
        laid = {b: self._commit(_LAID.format(b)) for b in self.branches}
        if head != self.base and head not in laid.values():
            raise CheckoutError(
                f"{self.folder} is at {head[:9]}, which is neither branch "
                "develop nor what this command has laid: git switch develop."
            )
        for branch in self.branches:
            tip = self._commit(f"refs/heads/{branch}")
            if tip and tip != laid[branch]:
                raise CheckoutError(
                    f"Branch {branch} of {self.folder} holds commits that "
                    "this command did not make; they would be lost. Rename it "
                    f"(git branch -m {branch} ...)."
                )

    def _check_paths(self, parts):
        for part in parts:
            for path in part.files:
                if path in self.at_base and path not in part.changes:
                    raise CheckoutError(
                        f"{path} is upstream's already and would be "
                        "overwritten. Give ours another name in "
                        "tools/upstream/table.py."
                    )

    def _is_laid(self, parts):
        """Whether these very commits are there."""
        commits = {None: self.base}
        for part in parts:
            commit = self._commit(_LAID.format(part.branch))
            head = self._commit(f"refs/heads/{part.branch}")
            if not commit or head != commit:
                return False
            parent = commits[part.onto]
            there = self._git(
                "diff-tree", "-r", "-z", "--no-renames", parent, commit
            ).split("\0")
            # ":mode mode blob blob status", path, ...
            found = {
                path: (entry.split()[1], entry.split()[3])
                for entry, path in zip(there[0:-1:2], there[1::2], strict=True)
            }
            wanted = {p: (m, blob(c)) for p, (m, c) in part.files.items()}
            lines = self._git("log", "-1", "--format=%P%n%B", commit)
            if (
                found != wanted
                or lines.strip() != f"{parent}\n{part.message.strip()}"
            ):
                return False
            commits[part.branch] = commit
        return True

    def _stream(self, parts):
        """What ``git fast-import`` reads."""
        # "Name <address> seconds zone"; the time is that of upstream's last
        # commit, so that the same contribution has the same hash again.
        person = self._git("var", "GIT_COMMITTER_IDENT").rsplit(" ", 2)[0]
        when = self._git("log", "-1", "--format=%ct +0000", self.base)
        parents, stream = {None: self.base}, b""
        for mark, part in enumerate(parts, 1):
            ref = _LAID.format(part.branch)
            stream += f"commit {ref}\nmark :{mark}\n".encode()
            stream += f"committer {person} {when}\n".encode()
            stream += _data(part.message.encode())
            stream += f"from {parents[part.onto]}\n".encode()
            for path, (mode, content) in sorted(part.files.items()):
                stream += f"M {mode} inline {path}\n".encode() + _data(content)
            parents[part.branch] = f":{mark}"
        return stream

    def _head(self):
        return self._git("symbolic-ref", "--quiet", "HEAD", check=False)

    def _commit(self, ref):
        return self._git(
            "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", check=False
        )

    def _git(self, *arguments, check=True, stdin=None, strip=True):
        done = subprocess.run(
            ["git", "-C", str(self.folder), *arguments],
            input=stdin,
            capture_output=True,
        )
        if check and done.returncode:
            reason = done.stderr.decode(errors="replace").strip()
            raise CheckoutError(
                f"git {arguments[0]} failed in {self.folder}: {reason}"
            )
        output = done.stdout.decode()
        return output.strip() if strip else output


def _data(content):
    return b"data %d\n%s\n" % (len(content), content)


def blob(content):
    """The name that git gives a file's content (bytes)."""
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()
