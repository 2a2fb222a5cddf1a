"""``train.py --dry_run`` shows a corpus, and trains nothing."""

import train

TINY = ["--preset", "tests/tiny.yaml"]


def test_a_dry_run_shows_what_would_be_trained_on(tmp_path, capsys):
    options = [*TINY, "--results_folder", str(tmp_path), "--dry_run"]
    train.main(["hparams/emoq_stage2.yaml", *options])
    output = capsys.readouterr().out
    for line in (
        "tiny, fold 1",
        "train: 21 utterances (angry 7, happy 7, sad 7), 0.00 hours, 1 speak",
        "sampling rates: 16000 Hz (36)",
        "train01, 0.45 s: happy",
        "Speaker: train speaker\nTranscript: yes he said\nVoice:<AUDIO>",
    ):
        assert line in output
    assert not list(tmp_path.rglob("results.json"))
    assert not list(tmp_path.rglob("save"))


def test_a_stage_without_a_prompt_shows_the_words(tmp_path, capsys):
    options = [*TINY, "--results_folder", str(tmp_path), "--dry_run"]
    train.main(["hparams/emoq_stage1.yaml", *options])
    output = capsys.readouterr().out
    assert "train01, 0.45 s: happy\nyes he said" in output
