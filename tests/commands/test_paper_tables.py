"""The paper's metrics are those it prints, and each run of its own can be made.

Against the text of the paper, which is not part of the project: what is held
against it is skipped where it is not there.
"""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from emoq_modules.training.configuration import StageRun, merge_presets

ROOT = Path(__file__).parents[2]
FILE = ROOT / "emoq_modules/commands/paper_tables.yaml"
PAPER = ROOT.parent / "shared/paper/emoq.txt"
CONTENT = YAML(typ="safe").load(FILE)
TABLES = CONTENT["tables"]
RUNS = [
    (table["corpus"], *row["run"].values())
    for table in TABLES
    for row in table["rows"]
    if row["run"]
]
NUMBER = r"(?:\d+\.\d|-)"


@pytest.fixture(scope="module")
def paper():
    """The paper's text, its unbreakable spaces made plain."""
    if not PAPER.exists():
        pytest.skip(f"needs the text of the paper in {PAPER}")
    return PAPER.read_text(encoding="utf-8").replace("\xa0", " ")


def printed_rows(paper, table):
    """What stands before a row's metrics, and the metrics, row by row."""
    after = paper.split(f"Table {table['table']}: ", 1)[1]
    pattern = rf"(.*?) ?({' '.join([NUMBER] * len(table['measures']))})"
    rows = []
    for line in after.splitlines():
        found = re.fullmatch(pattern, line)
        if found:
            rows.append((found[1], found[2].split()))
        elif rows:
            break
    return rows


@pytest.mark.parametrize("table", TABLES, ids=lambda t: f"table{t['table']}")
def test_metrics_are_those_that_the_paper_prints(paper, table):
    assert f"Table {table['table']}: {table['title']}\n" in paper
    printed = printed_rows(paper, table)
    assert len(printed) == len(table["rows"])
    for row, (before, metrics) in zip(table["rows"], printed, strict=True):
        ours = [row[measure] for measure in table["measures"]]
        assert ["-" if x is None else f"{x:.1f}" for x in ours] == metrics
        if before:
            source = "(Ours)" if row["source"] == "paper" else row["source"]
            assert before.startswith(f"{row['name']} {source} ")


@pytest.mark.parametrize("number", CONTENT["references"])
def test_references_are_the_papers(paper, number):
    (line,) = (
        line
        for line in paper.splitlines()
        if line.strip().startswith(f"• {number} ")
    )
    reference = CONTENT["references"][number]
    assert reference.split(" et al.")[0].split(" and ")[0] in line
    assert reference[-4:] in line


@pytest.mark.parametrize(
    ("corpus", "listed"),
    [
        ("IEMOCAP/iemocap4", "neutral, angry, sadness, and happy"),
        ("MELD/meld4", "neutral, angry, sadness, and joy"),
        (
            "MELD/meld7",
            "neutral, angry, sadness, joy, surprise, disgust, and fear",
        ),
    ],
)
def test_the_llm_says_the_words_by_which_the_paper_lists_the_classes(
    paper, corpus, listed
):
    assert listed in paper
    values = StageRun(
        merge_presets(
            "hparams/emoq_stage2.yaml",
            [f"recipes/{corpus}.yaml"],
            "data_folder: /data",
        )
    ).hparams
    words = values["words"] or {}
    said = [words.get(label, label) for label in values["labels"]]
    assert {*said, "and"} == {*re.findall(r"\w+", listed)}


@pytest.mark.parametrize(("corpus", "experiment", "stage", "presets"), RUNS)
def test_each_run_of_the_paper_can_be_composed(
    corpus, experiment, stage, presets
):
    resolved = merge_presets(
        experiment, [corpus, *presets], "data_folder: /data"
    )
    values = StageRun(resolved).hparams
    assert values["stage"] == stage
    assert values["corpus"] == Path(corpus).stem
    expected = Path(presets[-1]).stem if presets else "emoq"
    assert values["variant"] == expected


def test_rows_have_what_the_file_says_they_have():
    assert [table["table"] for table in TABLES] == [1, 2, 3, 4, 5, 6]
    for table in TABLES:
        keys = {"name", "run", *table["measures"], "source"}
        for row in table["rows"]:
            assert set(row) - {"note"} == keys
            quoted = row["source"] in CONTENT["references"]
            assert quoted or row["source"] == "paper"
            # HuBERT's row is quoted, and can be measured all the same.
            assert row["run"] or quoted


def number_of_classes(table):
    return len(YAML().load(ROOT / table["corpus"])["labels"])


def test_a_note_stands_where_accuracy_is_below_chance_and_nowhere_else():
    noted, below = (
        [
            (table["table"], row["name"])
            for table in TABLES
            for row in table["rows"]
            if is_so(table, row)
        ]
        for is_so in (
            lambda table, row: "note" in row,
            lambda table, row: (
                (row["UA"] or 100) < 100 / number_of_classes(table)
            ),
        )
    )
    assert noted == below == [(2, "HuBERT large")]


def test_no_metric_of_four_classes_is_one_of_seven_too():
    four, seven = (
        {
            (measure, row[measure])
            for table in TABLES
            for row in table["rows"]
            for measure in table["measures"]
            if Path(table["corpus"]).stem == corpus and row[measure]
        }
        for corpus in ("meld4", "meld7")
    )
    assert four and seven and not four & seven


def test_the_commands_of_a_note_can_be_given():
    (note,) = (
        row["note"]
        for table in TABLES
        for row in table["rows"]
        if "note" in row
    )
    presets = re.findall(r"--preset (\S+)", note)
    assert presets == [
        "recipes/MELD/meld7.yaml",
        "hparams/presets/baseline_hubert.yaml",
        "recipes/MELD/meld7.yaml",
    ]
    experiment = re.search(r"python train.py (\S+)", note)[1]
    whole = merge_presets(experiment, presets[:2], "data_folder: /data")
    values = StageRun(whole).hparams
    assert (values["corpus"], values["variant"]) == ("meld7", "baseline_hubert")


def test_the_whole_system_has_the_same_metrics_in_every_table_of_meld():
    rows = [
        {measure: row[measure] for measure in table["measures"]}
        for table in TABLES
        for row in table["rows"]
        if table["corpus"] == "recipes/MELD/meld7.yaml"
        and row["run"]
        and not row["run"]["presets"]
    ]
    assert rows == [{"WA": 67.6, "UA": 50.8, "WF1": 66.5}] * 4
