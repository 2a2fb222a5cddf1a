"""What the tests of the recipes share."""

import runpy

import pytest

from tests.corpus_folders import ROOT


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
