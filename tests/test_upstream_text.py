"""Python and YAML get upstream's names, and presets are merged as text."""

import pytest
from upstream.flatten import FlattenError, flatten
from upstream.idiom import signed, with_logger
from upstream.imports import MoveError, Names, inline, rewrite
from upstream_clone import write

from emoq_modules.configuration import ConfigurationError

NAMES = Names(
    {
        "emoq_modules.losses": "speechbrain.nnet.loss.mal_loss",
        "emoq_modules.offline": "speechbrain.emoq.small_backbones",
    },
    {"MALLoss": "losses"},
    {"ConfigurationError": "ValueError"},
)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "from emoq_modules import MALLoss, offline",
            "from speechbrain.nnet.loss.mal_loss import MALLoss\n"
            "from speechbrain.emoq import small_backbones as offline",
        ),
        (
            "é = 'ü'; from emoq_modules.losses import (\n    A as B,\n)",
            "é = 'ü'; from speechbrain.nnet.loss.mal_loss import A as B",
        ),
        (
            "from emoq_modules.configuration import ConfigurationError\n"
            "raise ConfigurationError('no emoq_modules.losses.A')",
            "\nraise ValueError('no speechbrain.nnet.loss.mal_loss.A')",
        ),
        (
            "def f():\n    '''\n    >>> from emoq_modules import MALLoss\n'''",
            "def f():\n    '''\n    >>> from speechbrain.nnet.loss.mal_loss "
            "import MALLoss\n'''",
        ),
        ("my_emoq_modules = emoq = 1", "my_emoq_modules = emoq = 1"),
        (
            "def test_a_b_c():\n    pass",
            'def test_a_b_c():\n    """A b c."""\n    pass',
        ),
    ],
)
def test_names_are_rewritten_where_they_stand(source, expected):
    assert rewrite(source, NAMES) == expected


@pytest.mark.parametrize(
    "source",
    [
        "from emoq_modules.serve import App",
        "from emoq_modules import Nothing",
        "import emoq_modules.losses",
        "x = 'emoq_modules.serve.App'",
    ],
)
def test_a_name_without_a_place_is_refused(source):
    with pytest.raises(MoveError):
        rewrite(source, NAMES)


def test_what_is_left_out_takes_its_comment_and_imports_along():
    source = (
        "from emoq_modules.serve import App\n\n\n# Of f.\nA = 1\n\n\n"
        "@mark\ndef f():\n    App()\n\n\nB = 2\n"
    )
    left = rewrite(source, NAMES, left_out={"A", "f"})
    assert left.split() == ["B", "=", "2"]
    with pytest.raises(MoveError, match="g, which is to be left out"):
        rewrite(source, NAMES, left_out={"g"})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""One line."""\nx = 1', '"""One line.'),
        (
            '#!/bin/py\n"""One.\n\nMore.\n"""\nx = 1',
            '#!/bin/py\n"""One.\n\nMore.',
        ),
    ],
)
def test_a_docstring_ends_with_the_authors(source, expected):
    found = signed(source, "Somebody, 2026")
    assert found == f'{expected}\n\nAuthors\n * Somebody, 2026\n"""\nx = 1'


def test_the_logger_is_upstreams():
    source = "import logging\n\nlog = logging.getLogger(__name__)\n"
    assert with_logger(source) == (
        "import logging\nfrom speechbrain.utils.logger import get_logger\n\n"
        "log = get_logger(__name__)\n"
    )
    assert with_logger("x = 1") == "x = 1"


def test_a_module_is_inlined_where_it_was_imported():
    script = "import sys\nfrom m import f\n\nlog = 1\nprint(f(), log)\n"
    module = '"""Doc."""\nimport os\n\nlog = 1\n\n\ndef f():\n    return os\n'
    scope = {"print": lambda *values: scope.update(printed=values)}
    exec(inline(script, module, "m"), scope)
    assert scope["printed"][0].__name__ == "os"


def test_a_section_of_the_stage_is_merged_and_the_others_is_not(tmp_path):
    write(tmp_path, "e.yaml", "# E.\nstage: 1\n\n# Of a.\na: 1\nb: !ref <a>\n")
    write(
        tmp_path,
        "p.yaml",
        "# P.\nb: 3\nstage1:\n    # New.\n    a:\n        c: 4\nstage2:\n"
        "    a: 5\n",
    )
    # An experiment has a data_folder.
    with pytest.raises(ConfigurationError):
        flatten(tmp_path / "e.yaml", [tmp_path / "p.yaml"], "run", NAMES)
    with (tmp_path / "e.yaml").open("a") as file:
        file.write("data_folder: !PLACEHOLDER\n")
    text = flatten(tmp_path / "e.yaml", [tmp_path / "p.yaml"], "run", NAMES)
    assert text == (
        "# E.\n#\n# P.\n#\n#   run\n\nstage: 1\n\n# New.\na:\n    c: 4\n"
        "b: 3\ndata_folder: !PLACEHOLDER\n"
    )
    write(tmp_path, "p.yaml", "# P.\nstage1: {a: 3}\n")
    with pytest.raises(FlattenError):
        flatten(tmp_path / "e.yaml", [tmp_path / "p.yaml"], "run", NAMES)
