"""Tables in the dialects that people save them in."""

import pytest

from emoq_modules.dataio.tables import open_listing, parse_pairs, read_table
from emoq_modules.errors import CorpusError

TEXT = "path,text,emotion\na.wav,Grüße – schön,joy\n"


@pytest.fixture
def read(tmp_path):
    """Reads a table of this content."""

    def read(content):
        path = tmp_path / "table.csv"
        if isinstance(content, str):
            content = content.encode()
        path.write_bytes(content)
        return read_table(path)

    return read


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_dialects_give_the_same_table(read, encoding, separator, end):
    text = TEXT.replace(",", separator).replace("\n", end)
    table = read(text.encode(encoding))
    assert table.columns == ["path", "text", "emotion"]
    assert table.rows == [
        {"path": "a.wav", "text": "Grüße – schön", "emotion": "joy"}
    ]


def test_quotes_hold_separators_lines_and_quotes(read):
    table = read('path,text\na,"one, ""two""\nthree"\n\nb,1\n')
    assert [row["text"] for row in table.rows] == ['one, "two"\nthree', "1"]
    assert table.lines == [2, 5]


def test_values_stay_text(read):
    (row,) = read("path,emotion,start\n007,none,1e3\n").rows
    assert row == {"path": "007", "emotion": "none", "start": "1e3"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("path,text\n", r"a header \(path, text\), and no rows"),
        ("path,text,text\na,b,c\n", "several columns 'text'"),
        ("# mine\npath,text\na,b\n", "The first line of .* '# mine', is no h"),
        ("path,text\na,one, two\nb,c\nd\n", r"faults: 2\n  line 2: 3 cells"),
        ('path,text\na,b\nc,"d\ne,f\n', "no CSV from line 3 on"),
        ('path,text\na,"b" c\n', "no CSV from line 2 on"),
        (b"path,text\na\0b,c\n", "is no text"),
        (b"path,text\na,\xc3\xbc\nb,\xfc\n", "line 2 is in UTF-8, and line 3"),
        (b"PK\x03\x04xl/workbook", "a file of Excel"),
        (b"PAR1 cut off", "Parquet|damaged"),
    ],
)
def test_what_cannot_be_meant_is_named(read, content, message):
    with pytest.raises(CorpusError, match=message):
        read(content)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(CorpusError, match="no such file"):
        read_table(tmp_path / "no.csv")
    with pytest.raises(CorpusError, match="is a directory"):
        read_table(tmp_path)


def test_parquet_gives_the_same_table(read, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table(
        {
            "path": ["a", "b"],
            "turn": [1, None],
            "start": [0.5, float("nan")],
            "audio": [{"bytes": b"xx"}, {"bytes": b"yy"}],
        }
    )
    parquet.write_table(table, tmp_path / "table.parquet")
    table = read_table(tmp_path / "table.parquet")
    assert table.rows == [
        {"path": "a", "turn": "1", "start": "0.5"},
        {"path": "b", "turn": "", "start": ""},
    ]


def test_columns_are_found_by_their_usual_names(read):
    table = read("File_ID;Emotion ;raw text;StartTime;note\na;b;c;1;x\n")
    names = ("path", "emotion", "text", "start", "end")
    assert table.find_columns(names) == {
        "path": "File_ID",
        "emotion": "Emotion",
        "text": "raw text",
        "start": "StartTime",
    }
    assert table.find_columns(["text"], {"text": "NOTE"}) == {"text": "note"}
    with pytest.raises(CorpusError, match="no column 'words' for text"):
        table.find_columns(["text"], {"text": "words"})


def test_a_column_is_the_one_of_that_very_name_or_the_only_like_it(read):
    table = read("path,emotion,Emotion,!\na,b,c,d\n")
    assert table.find_columns(["emotion"]) == {"emotion": "emotion"}
    with pytest.raises(CorpusError, match="no column '#'"):
        table.find_columns(["emotion"], {"emotion": "#"})
    table = read("EMOTION,Emotion\na,b\n")
    with pytest.raises(CorpusError, match="several columns for emotion"):
        table.find_columns(["emotion"])


@pytest.fixture
def two_tables(tmp_path):
    """Tables of one name in two folders, with columns of other names."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/labels.csv").write_text("file,emo,speaker\n1.wav,joy,Ann\n")
    (tmp_path / "b/labels.csv").write_text("path;mood;wer\n1.wav;sad ;Bob\n")
    return [tmp_path / "a/labels.csv", tmp_path / "b/labels.csv"]


@pytest.mark.parametrize("given", [list, lambda paths: "{}, {}".format(*paths)])
def test_several_tables_are_one_listing(two_tables, given):
    found = open_listing(given(two_tables), "emotion=mood, speaker=wer")
    told = [
        (row["corpus"], row["path"], row["emotion"], row["speaker"])
        for row in found.rows
    ]
    assert told == [("a/labels", "1.wav", "joy", "Ann")] + [
        ("b/labels", "1.wav", "sad", "Bob")
    ]
    assert found.places[1] == f"line 2 of {two_tables[1]}"
    assert found.folders == [path.parent for path in two_tables]


def test_one_table_is_no_corpus_among_others(two_tables):
    found = open_listing(two_tables[0])
    assert found.rows[0]["corpus"] == "" and found.places == ["line 2"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("emotion=feeling", "labels.csv has no column 'feeling' for emotion"),
        ("", "b/labels.csv has no column that is called as the emotion"),
    ],
)
def test_columns_that_none_of_the_tables_has_are_named(
    two_tables, columns, message
):
    with pytest.raises(CorpusError, match=message):
        open_listing(two_tables, columns)


def test_a_table_twice_is_refused(two_tables):
    with pytest.raises(CorpusError, match="named twice"):
        open_listing([two_tables[0], two_tables[0]])


def test_what_stands_around_a_cell_unseen_is_no_part_of_it(read):
    table = read("sep=;\r\npath ; text\u200b\r\n a.wav ; Hm, yes\u00a0\r\n")
    assert table.rows == [{"path": "a.wav", "text": "Hm, yes"}]


def test_a_letter_written_in_two_ways_is_one(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("path,emotion\na\u0308.wav,a\u0308rger\n")
    (row,) = open_listing(table).rows
    assert row["emotion"] == "\u00e4rger"
    assert row["path"] == "a\u0308.wav"  # as the disk has it
    assert parse_pairs("a\u0308rger=angry") == {"\u00e4rger": "angry"}
