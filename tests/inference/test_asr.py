"""Recordings without a text are transcribed, by whatever model there is."""

import csv
import json
import time

import pytest
import soundfile
import torch
from huggingface_hub import constants
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
    pipeline,
)

from emoq_modules import EmotionRecognizer, Recording
from emoq_modules.dataio.audio import read_audio
from emoq_modules.errors import BackboneError
from emoq_modules.inference import asr
from emoq_modules.inference.asr import load_transcriber, with_texts
from emoq_modules.inference.batching import Segment
from emoq_modules.inference.vad import load_vad

VOCABULARY = ["<pad>", "|", *"abcdefghijklmnopqrstuvwxyz"]
WAV = torch.sin(torch.arange(16000) ** 1.5 / 100) / 2


@pytest.fixture(scope="module")
def ctc_folder(tmp_path_factory):
    """The folder of a tiny wav2vec 2.0 of random weights, with letters."""
    folder = tmp_path_factory.mktemp("ctc")
    vocabulary = {token: i for i, token in enumerate(VOCABULARY)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(
        str(folder / "vocab.json"), unk_token="<pad>", bos_token=None,
        eos_token=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(
        Wav2Vec2Config(
            vocab_size=len(VOCABULARY),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=[32] * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
            pad_token_id=0,
        )
    )
    model.save_pretrained(folder)
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(
        folder
    )
    return folder


def test_transformers_model_transcribes(ctc_folder):
    expected = pipeline("automatic-speech-recognition", model=str(ctc_folder))
    text = expected(WAV.numpy())["text"].strip()
    assert text  # of letters that random weights chose
    assert load_transcriber(ctc_folder)(WAV) == text
    assert load_transcriber(expected)(WAV) == text  # one already loaded
    # And what is longer than a model hears at once.
    assert len(load_transcriber(ctc_folder)(WAV.repeat(40))) > len(text)


def test_only_recordings_without_a_text_are_transcribed(
    recognizer_folder, tmp_path
):
    soundfile.write(tmp_path / "a.wav", WAV.numpy(), 16000)
    heard = []

    def transcribe(samples):
        heard.append(len(samples))
        return "great yes"

    recognizer = EmotionRecognizer.from_hparams(
        recognizer_folder, asr=transcribe
    )
    said = Recording(tmp_path / "a.wav", "sorry no")
    found = list(
        recognizer.recognize([tmp_path / "a.wav", said, tmp_path / "b.wav"])
    )
    assert [each.text for each in found] == ["great yes", "sorry no", ""]
    assert heard == [16000]
    expected, *_ = recognizer.classify_file(tmp_path / "a.wav", "great yes")
    values = list(found[0].posteriors.values())
    assert values == pytest.approx(expected[0].tolist(), abs=1e-5)
    windows = recognizer.timeline(
        tmp_path / "a.wav", 0.5, 0.5, asr=lambda samples: f"{len(samples)}"
    )
    assert [window.text for window in windows] == ["8000", "8000"]


def texts_of(sounds, transcribe):
    segments = (
        Segment(Recording(name), 0.0, 1.0, sound)
        for name, sound in sounds.items()
    )
    found = with_texts(segments, transcribe)
    return {each.recording.path: each.recording.text for each in found}


def test_what_repeats_itself_or_comes_from_silence_is_left_out(caplog):
    said = {1: "Der " + 220 * "lap ", 2: "", 3: "No, no, no, no, no, no!"}
    heard = texts_of(
        {"silence": WAV / 1e4, "loop": WAV, "nothing": 2 * WAV, "no": 3 * WAV},
        # What is silent is not even asked about.
        lambda samples: said[round(2 * samples.max().item())],
    )
    assert heard == {"silence": "", "loop": "", "nothing": "", "no": said[3]}
    warnings = dict(line.split(", 0.0 to 1.0 s, ") for line in caplog.messages)
    assert "is silent" in warnings.pop("silence")
    assert "repeats itself ('Der lap lap" in warnings.pop("loop")
    assert "no speech was heard" in warnings.pop("nothing")
    assert not warnings


@pytest.fixture(scope="module")
def whisper(trained):
    """A trained Whisper that is told to expect German."""
    folder = trained("whisper-base")
    with pytest.raises(BackboneError, match="no language 'klingon'"):
        load_transcriber(folder, language="klingon")
    return load_transcriber(folder, language="german")


def test_whisper_hears_german(whisper, shared_data, monkeypatch):
    """The figure of docs/using.md; ``pytest -s`` prints it."""
    with (shared_data / "emodb/sentences.tsv").open(encoding="utf-8") as file:
        sentences = {
            row["code"]: row["text"]
            for row in csv.DictReader(file, delimiter="\t")
        }

    def letters(text):
        return "".join(filter(str.isalnum, text.lower()))

    sounds = {}
    for code in sentences:
        first = min((shared_data / "emodb/flac").glob(f"03{code}*.flac"))
        sounds[code] = read_audio(first)
    heard = {code: whisper(sound) for code, sound in sounds.items()}
    right = [
        code
        for code, text in sentences.items()
        if letters(heard[code]) == letters(text)
    ]
    print(f"{len(right)} of {len(sentences)} sentences, letter by letter")
    # Another processor's rounding may turn one.
    assert len(right) >= 7, heard
    # What is drawn after a fallback is the same whatever was drawn before, and
    # nobody else's random numbers are taken.
    monkeypatch.setitem(asr._FALLBACKS, "temperature", (0.0, 1.0))
    monkeypatch.setitem(asr._FALLBACKS, "logprob_threshold", 0.0)
    drawn = set()
    for seed in range(2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        drawn.add(whisper(sounds["a04"]))
        assert torch.equal(torch.get_rng_state(), state)
    assert len(drawn) == 1 and drawn != {heard["a04"]}


@pytest.mark.parametrize("language", ["en", None])
def test_whisper_hears_no_words_in_noise(whisper, language, trained, caplog):
    if language == "en":  # says "Thank you." otherwise
        whisper = load_transcriber(trained("whisper-base"), language=language)
    noise = torch.randn(48000, generator=torch.Generator().manual_seed(0))
    hum = sum(torch.sin(torch.arange(48000) * k / 51) for k in range(1, 6))
    sounds = {"noise": noise / 10, "hum": hum / 20, "zeros": 0 * hum}
    assert texts_of(sounds, whisper) == dict.fromkeys(sounds, "")
    assert len(caplog.messages) == 3


def test_language_is_for_whisper_alone(ctc_folder):
    with pytest.raises(BackboneError, match="'wav2vec2', which cannot be gi"):
        load_transcriber(ctc_folder, language="de")
    with pytest.raises(BackboneError, match="has its own options"):
        load_transcriber(lambda samples: "ja", language="de")


def test_folder_of_another_kind_is_said(recognizer_folder, llm):
    with pytest.raises(BackboneError, match="lacks config.json"):
        load_transcriber(recognizer_folder)
    with pytest.raises(BackboneError, match="none that transcribes"):
        load_transcriber(llm)
    with pytest.raises(BackboneError, match="transcribes nothing"):
        load_transcriber(5)


@pytest.mark.parametrize("load", [load_transcriber, load_vad])
def test_model_that_is_not_to_be_had_is_a_quick_error(load, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    start = time.monotonic()
    with pytest.raises(BackboneError, match="nobody/no-model"):
        load("nobody/no-model")
    assert time.monotonic() - start < 5
