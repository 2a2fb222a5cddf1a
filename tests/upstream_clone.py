"""A small clone of SpeechBrain, and what the contribution lays over it."""

import json
import subprocess

import pytest
import to_speechbrain
from upstream import table
from upstream.checkout import blob

BRANCHES = list(table.SERIES)
CORRECTION = table.PATCH["branch"]
HEADER = (
    "Task,Dataset,Script_file,Hparam_file,Data_prep_file,Readme_file,"
    "Result_url,HF_repo,test_debug_flags,test_debug_checks,performance\n"
)
ROW = "Emotion_recognition,IEMOCAP,a.py,b.yaml,c.py,d.md,,,--e=1,,"
PYPROJECT = """\
[project]
name = "speechbrain"
[tool.ruff]
target-version = "py38"
line-length = 80
"""
# A fault of upstream's, in small, and the place of a copy of it.
FAULTY, COPY = "recipes/IEMOCAP/prepare.py", "recipes/IEMOCAP/a/prepare.py"
FAULT = "import os\n\nnames = os.listdir()\n"
CORRECTED = FAULT.replace("os.listdir()", "sorted(os.listdir())")
DIFF = f"""\
diff --git a/{FAULTY} b/{FAULTY}
index {blob(FAULT.encode())}..{blob(CORRECTED.encode())} 100644
--- a/{FAULTY}
+++ b/{FAULTY}
@@ -3 +3 @@ import os
-names = os.listdir()
+names = sorted(os.listdir())
"""


@pytest.fixture(scope="session")
def small_correction(tmp_path_factory):
    """The correction of that fault, in the place of the true one."""
    diff = tmp_path_factory.mktemp("diff") / "small.patch"
    diff.write_text(DIFF)
    links = {COPY: "../prepare.py"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(table.PATCH, "diff", diff)
        patch.setitem(table.PATCH, "links", links)
        yield


def git(folder, *arguments):
    """What a git command prints."""
    return subprocess.run(
        ["git", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def commit(folder):
    """Commits everything."""
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "Change something")


def write(folder, path, text=""):
    """Writes a file, in a folder that may not be there yet."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)


def state(folder):
    """All that a command could change: refs, HEAD and files."""
    return (
        git(folder, "show-ref"),
        git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        git(folder, "status", "--porcelain", "--ignored"),
        git(folder, "ls-files", "-s"),
    )


def make_clone(folder):
    """What the command looks at of SpeechBrain, in a git repository."""
    for path in table.NEEDED:
        write(folder, path)
    write(folder, "speechbrain/version.txt", "1.1.0\n")
    write(folder, "pyproject.toml", PYPROJECT)
    write(folder, FAULTY, FAULT)
    write(folder, COPY, FAULT)
    # Without a newline at the end, as upstream's is.
    write(folder, "tests/recipes/IEMOCAP.csv", HEADER + ROW)
    for name, size in (("train", 8), ("dev", 2)):
        rows = {
            f"snt{index}": {
                "wav": f"{{data_root}}/snt{index}.wav",
                "duration": "2.5",
                "words": "ONE TWO",
                "spk_id": "spk1",
            }
            for index in range(size)
        }
        path = f"tests/samples/annotation/ASR_{name}.json"
        write(folder, path, json.dumps(rows))
    git(folder, "init", "-q", "-b", "develop")
    git(folder, "config", "user.name", "Somebody")
    git(folder, "config", "user.email", "somebody@example.org")
    commit(folder)
    return folder


@pytest.fixture
def clone(tmp_path, small_correction):
    """A clone of the small SpeechBrain."""
    return make_clone(tmp_path / "speechbrain")


@pytest.fixture(scope="session")
def laid(tmp_path_factory, small_correction):
    """One with the contribution, to look at."""
    folder = make_clone(tmp_path_factory.mktemp("clone") / "speechbrain")
    assert to_speechbrain.main([str(folder)]) == 0
    return folder
