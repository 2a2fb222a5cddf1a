"""Corpora by their published layouts, in small."""

import pytest

from emoq_modules.dataio.tables import make_table
from emoq_modules.errors import CorpusError
from emoq_modules.training.configuration import change, plan_runs
from recipes.table import corpora
from tests.corpus_folders import read_splits, wav_bytes, write

CORPORA = ["ravdess", "crema_d", "tess", "savee", "nemo", "msp_podcast", "esd"]


def lay(folder, *names, **texts):
    """Writes recordings of these names, and texts."""
    for name in names:
        write(folder / name, wav_bytes())
    return {path: write(folder / path, text) for path, text in texts.items()}


def rows_of(corpus, folder):
    """The rows of a corpus by their path, as values in the order given."""
    rows = getattr(corpora, corpus)(folder)
    return {row.pop("path"): tuple(row.values()) for row in rows}


def test_ravdess(tmp_path):
    lay(
        tmp_path,
        "Actor_12/03-01-06-01-02-01-12.wav",
        "Actor_01/03-01-02-02-01-02-01.wav",
        "Actor_01/03-02-02-02-01-02-01.wav",  # sung
        "Actor_01/notes.wav",
    )
    assert rows_of("ravdess", tmp_path) == {
        "Actor_12/03-01-06-01-02-01-12.wav": (
            *("fear", "Dogs are sitting by the door.", "12"),
        ),
        "Actor_01/03-01-02-02-01-02-01.wav": (
            *("calm", "Kids are talking by the door.", "01"),
        ),
    }


def test_crema_d(tmp_path):
    lay(
        tmp_path, "AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1091_WSI_SAD_HI.wav"
    )
    assert rows_of("crema_d", tmp_path) == {
        "AudioWAV/1001_DFA_ANG_XX.wav": (
            *("angry", "Don't forget a jacket.", "1001"),
        ),
        "AudioWAV/1091_WSI_SAD_HI.wav": (
            *("sad", "We'll stop in a couple of minutes.", "1091"),
        ),
    }


def test_tess(tmp_path):
    lay(
        tmp_path,
        "OAF_angry/OAF_back_angry.wav",
        "YAF_pleasant_surprised/YAF_dog_ps.wav",
        "OAF_neutral/OA_bite_neutral.wav",
    )
    assert rows_of("tess", tmp_path) == {
        "OAF_angry/OAF_back_angry.wav": ("angry", "Say the word back.", "OA"),
        "YAF_pleasant_surprised/YAF_dog_ps.wav": (
            *("surprise", "Say the word dog.", "YA"),
        ),
        "OAF_neutral/OA_bite_neutral.wav": (
            *("neutral", "Say the word bite.", "OA"),
        ),
    }


def test_savee(tmp_path):
    lay(
        tmp_path, "AudioData/DC/sa01.wav", "AudioData/KL/n30.wav", "JE_su07.wav"
    )
    assert rows_of("savee", tmp_path) == {
        "AudioData/DC/sa01.wav": ("sad", "DC"),
        "AudioData/KL/n30.wav": ("neutral", "KL"),
        "JE_su07.wav": ("surprise", "JE"),
    }


def test_nemo(tmp_path):
    header = "file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\n"
    row = "SB0_fear_05.wav\tfear\tGdzie są żółwie?\tgdzie są\tSB0\tmale\n"
    lay(tmp_path, "samples/SB0_fear_05.wav", **{"data.tsv": header + row})
    assert rows_of("nemo", tmp_path) == {
        "samples/SB0_fear_05.wav": ("fear", "Gdzie są żółwie?", "SB0"),
    }


def test_msp_podcast(tmp_path):
    rows = [
        "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set",
        "MSP-PODCAST_0001_0008.wav,N,4.0,4.2,4.1,127,Female,Test1",
        "MSP-PODCAST_0001_0019.wav,H,4,5,4,Unknown,Unknown,Train",
        "MSP-PODCAST_0002_0001.wav,X,4,5,4,12,Male,Train",
        "MSP-PODCAST_0002_0002.wav,A,4,5,4,12,Male,Test3",
        "MSP-PODCAST_0002_0003.wav,C,4,5,4,12,Male,Development",
    ]
    lay(
        tmp_path,
        **{
            "Labels/labels_consensus.csv": "\n".join(rows),
            "Transcripts/MSP-PODCAST_0001_0008.txt": "Well, I see.\n",
        },
    )
    assert rows_of("msp_podcast", tmp_path) == {
        "Audios/MSP-PODCAST_0001_0008.wav": (
            *("neutral", "Well, I see.", "127", "test"),
        ),
        "Audios/MSP-PODCAST_0001_0019.wav": ("happy", "", "", "train"),
        "Audios/MSP-PODCAST_0002_0003.wav": ("contempt", "", "12", "valid"),
    }


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"]
)
def test_esd(tmp_path, encoding):
    mandarin = "0001_000001\t打远一看，很美丽。\t中立\n".encode(encoding)
    english = "0011_000351\tThe nine the eggs, I keep.\tAngry\n"
    lay(
        tmp_path,
        "0001/Neutral/0001_000001.wav",
        "0011/Angry/test/0011_000351.wav",
        "0011/Angry/evaluation/0011_000372.wav",
        **{"0001/0001.txt": mandarin, "0011/0011.txt": english},
    )
    assert rows_of("esd", tmp_path) == {
        "0001/Neutral/0001_000001.wav": (
            "neutral",
            "打远一看，很美丽。",
            "0001",
            "",
        ),
        "0011/Angry/test/0011_000351.wav": (
            *("angry", "The nine the eggs, I keep.", "0011", "test"),
        ),
        "0011/Angry/evaluation/0011_000372.wav": (
            *("angry", "", "0011", "valid"),
        ),
    }


@pytest.mark.parametrize("corpus", CORPORA)
def test_a_preset_fits_both_stages(corpus):
    presets = ["recipes/table/table.yaml", f"recipes/table/{corpus}.yaml"]
    [run] = plan_runs("hparams/emoq_stage2.yaml", presets, "data_folder: /no")
    for stage in (run, run.first):
        assert stage.hparams["corpus"] == corpus
        assert len(stage.hparams["labels"]) > 4
    assert run.hparams["prepare"].keywords["table"] is getattr(corpora, corpus)


def test_a_corpus_is_prepared_by_its_preset(tmp_path):
    lay(
        tmp_path / "data",
        *(
            f"AudioData/{speaker}/{emotion}{n:02}.wav"
            for speaker in ("DC", "JE", "JK", "KL")
            for emotion in ("a", "d", "f", "h", "n", "sa", "su")
            for n in (1, 2)
        ),
    )
    options = change(
        "",
        data_folder=str(tmp_path / "data"),
        results_folder=str(tmp_path / "results"),
    )
    presets = ["recipes/table/table.yaml", "recipes/table/savee.yaml"]
    runs = plan_runs("hparams/emoq_stage1.yaml", presets, options, "all")
    tested = []
    for run in runs:
        run.hparams["prepare"]()
        splits = read_splits(run.hparams["manifest_folder"])
        tested.append({row["speaker"] for row in splits["test"].values()})
        assert len(splits["test"]) == 14
    assert tested == [{"DC"}, {"JE"}, {"JK"}, {"KL"}]


def test_a_folder_without_the_corpus_is_named(tmp_path):
    with pytest.raises(CorpusError, match=f"No recording .* in {tmp_path}"):
        make_table(tmp_path, corpora.savee(tmp_path))
