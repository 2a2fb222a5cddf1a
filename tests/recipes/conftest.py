"""What the tests of the recipes share."""

import csv
import runpy

import pytest

from tests.corpus_folders import (
    ROOT,
    load_recipe,
    read_splits,
    wav_bytes,
    write,
)


@pytest.fixture
def run_script(monkeypatch, capsys, caplog):
    """Runs a recipe's script by itself; gives its status and what it says."""

    def run(script, *arguments):
        caplog.set_level("INFO")
        caplog.clear()
        path = str(ROOT / "recipes" / script)
        monkeypatch.setattr("sys.argv", [path, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(path, run_name="__main__")
        return ended.value.code, capsys.readouterr().err + caplog.text

    return run


@pytest.fixture
def calls(tmp_path):
    """12 speakers in 6 dialogues of 2, who say 4 things of 2 emotions."""
    header = "path,emotion,text,speaker,dialogue,turn"
    rows = [
        f"d{d}/{who}{n}.wav,{word},Hm {n}.,{who}{d},d{d},{2 * n + (who > 'a')}"
        for d in range(6)
        for who in "ab"
        for n, word in enumerate(("anger", "joy") * 2)
    ]
    for row in rows:
        write(tmp_path / "calls" / row.split(",")[0], wav_bytes())
    write(tmp_path / "calls/labels.csv", "\n".join([header, *rows]))
    return tmp_path / "calls"


@pytest.fixture
def prepare_calls(calls, tmp_path):
    """Prepares the table of ``calls``, with its rows changed if asked for."""

    recipe = load_recipe("table/table_prepare.py")

    def prepare(change=None, **settings):
        table = calls / "labels.csv"
        if change:
            with table.open() as file:
                rows = list(csv.DictReader(file))
            rows = [row for row in map(change, rows) if row]
            table = calls / "changed.csv"
            with table.open("w") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        settings = {"min_utterances": 2, "folds": 3} | settings
        recipe.prepare_table(calls, tmp_path / "save", table, **settings)
        return read_splits(tmp_path / "save")

    return prepare
