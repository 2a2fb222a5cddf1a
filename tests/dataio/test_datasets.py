"""From manifests to items: audio, labels, tokens, context."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.dataio.batch import PaddedBatch

from emoq_modules import PromptTemplate
from emoq_modules.dataio.audio import read_audio
from emoq_modules.dataio.datasets import (
    TextInputs,
    build_datasets,
    training_labels,
)
from emoq_modules.dataio.manifest import Turn, Utterance, write_manifests
from emoq_modules.dataio.manifest_reader import read_manifest
from emoq_modules.errors import CorpusError
from emoq_modules.lobes.backbones import load_tokenizer

LABELS = ["sad", "angry", "neutral", "happy"]


def row(emotion, text="Oh no!", dialogue="d", turn=0):
    """A row of a manifest."""
    wav = f"{emotion}.wav"
    return Utterance("id", wav, 1.0, "Ross", "s", dialogue, turn, text, emotion)


@pytest.fixture(scope="module")
def tokenizer(text_encoder):
    """That of a small RoBERTa."""
    return load_tokenizer(text_encoder)


def items(rows, inputs, audio=None, dialogues=None):
    """A data set of rows, by their ids."""
    made = build_datasets({"train": rows}, LABELS, audio, inputs, dialogues)
    return made["train"]


def test_items_hold_what_a_batch_needs(tokenizer):
    frames = {"sad.wav": torch.ones(5, 2), "angry.wav": torch.zeros(3, 2)}
    rows = {"u1": row("sad"), "u2": row("angry")}
    item = items(rows, TextInputs(tokenizer, prompt=Told()), frames.get)[0]
    assert item.keys() == {
        *("id", "dialogue", "label"),
        *("audio", "tokens", "prompt"),
    }
    assert (item["id"], item["dialogue"]) == ("u1", "d")
    assert item["prompt"] == ("Oh no!", "Ross", [])
    assert item["audio"] is frames["sad.wav"]
    assert tokenizer.decode(item["tokens"]) == "<s>Oh no!</s>"


@pytest.mark.parametrize("order", [LABELS, LABELS[::-1], ["sad", "angry"]])
def test_labels_have_the_order_of_the_preset_whatever_that_of_the_data(order):
    dataset = items({f"u{e}": row(e) for e in order}, TextInputs())
    found = {item["id"][1:]: item["label"] for item in dataset}
    assert found == {e: LABELS.index(e) for e in order}


def test_audio_may_be_left_out_and_tokens_may_have_no_reader():
    manifests = {"valid": {"u1": row("sad")}, "test": {"u2": row("sad")}}
    datasets = build_datasets(manifests, LABELS, None, TextInputs())
    assert datasets.keys() == {"valid", "test"}
    item = datasets["test"][0]
    assert not {"audio", "prompt"} & item.keys()
    assert item["tokens"].tolist() == [0]


@pytest.mark.parametrize("limit", [3, 8, 256])
def test_long_transcript_is_cut_and_keeps_its_end_token(tokenizer, limit):
    text = "I can't believe we won the game! " * 100
    inputs = TextInputs(tokenizer, limit)
    tokens = inputs.tokens(text).tolist()
    assert len(tokens) == limit
    assert tokens[0] == tokenizer.bos_token_id
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokens[1:-1] == tokenizer(text)["input_ids"][1 : limit - 1]
    assert tokenizer.decode(inputs.tokens("")) == "<s></s>"


class Told:
    """In the place of a prompt: gives what it is told."""

    def encode(self, text, speaker, context):
        return text, speaker, context


# Two dialogues that are alike but for who speaks; of each the turns 1, 4 and 5
# are rows, in an order that is not theirs.
DIALOGUES = {
    name: [
        Turn(0, "Ross", f"{name} zero"),
        Turn(1, speaker, f"{name} one"),
        Turn(2, speaker, ""),
        Turn(4, "Ross", f"{name} four"),
        Turn(5, speaker, f"{name} five"),
        Turn(7, "Ross", f"{name} seven"),
    ]
    for name, speaker in (("p", "Rachel"), ("q", "Joey"))
}


def told(number, speaker_in_prompt=True):
    """Row -> speaker and turns before, in a data set with so many of them."""
    manifests = {
        split: {
            f"{name}{turn}": row("sad", dialogue=name, turn=turn)
            for turn in (5, 1, 4)
        }
        for split, name in (("train", "p"), ("test", "q"))
    }
    inputs = TextInputs(
        prompt=Told(), context_turns=number, speaker_in_prompt=speaker_in_prompt
    )
    datasets = build_datasets(manifests, LABELS, None, inputs, DIALOGUES)
    return {
        item["id"]: item["prompt"][1:]
        for dataset in datasets.values()
        for item in dataset
    }


def test_context_is_the_turns_before_oldest_first_of_no_class_or_every():
    contexts = {name: context for name, (_, context) in told(2).items()}
    assert contexts == {
        "p1": [("Ross", "p zero")],
        "p4": [("Ross", "p zero"), ("Rachel", "p one")],
        "p5": [("Rachel", "p one"), ("Ross", "p four")],
        "q1": [("Ross", "q zero")],
        "q4": [("Ross", "q zero"), ("Joey", "q one")],
        "q5": [("Joey", "q one"), ("Ross", "q four")],
    }


@pytest.mark.parametrize("number", [0, 1, 2, 3, 100])
def test_context_is_never_later_nor_of_another_dialogue(number):
    for name, (_, context) in told(number).items():
        texts = {text for _, text in context}
        before = {
            turn.text
            for turn in DIALOGUES[name[0]]
            if turn.text and turn.turn < int(name[1])
        }
        assert texts <= before
        assert len(context) == min(number, len(before))


def test_speakers_are_told_with_the_utterance_and_before_it_or_nowhere():
    assert told(1)["p5"] == ("Ross", [("Ross", "p four")])
    assert told(1, speaker_in_prompt=False)["p5"] == (None, [(None, "p four")])


def test_prompts_come_through_a_batch_as_they_are(llm):
    prompt = PromptTemplate("{labels}?", "{context}\n{text}\n<AUDIO>").bind(
        load_tokenizer(llm), LABELS
    )
    rows = {
        "u0": row("sad", dialogue="p", turn=0),
        "u1": row("sad", dialogue="p", turn=5),
    }
    inputs = TextInputs(prompt=prompt, context_turns=9)
    dataset = items(rows, inputs, dialogues=DIALOGUES)
    batch = PaddedBatch([dataset[0], dataset[1]])
    before = [("Ross", "p zero"), ("Rachel", "p one"), ("Ross", "p four")]
    assert list(map(tuple, batch.prompt)) == [
        prompt.encode("Oh no!", "Ross"),
        prompt.encode("Oh no!", "Ross", before),
    ]


def test_training_labels_are_those_of_the_items(tmp_path, tokenizer):
    rows = []
    for index, emotion in enumerate(["sad", "happy", "sad", "angry"]):
        soundfile.write(tmp_path / f"u{index}.wav", np.zeros(1600), 16000)
        changes = {"id": f"u{index}", "wav": f"{{data_root}}/u{index}.wav"}
        rows.append(replace(row(emotion, turn=index), **changes))
    splits = {"train": rows[:2], "valid": rows[2:3], "test": rows[3:]}
    write_manifests(tmp_path / "manifests", splits, LABELS, {})
    train = tmp_path / "manifests/train.json"
    rows = read_manifest(train, LABELS, tmp_path)
    dataset = items(rows, TextInputs(tokenizer), read_audio)
    assert training_labels(train, LABELS) == [0, 3]
    with pytest.raises(CorpusError, match="'happy', which is not one of"):
        training_labels(train, ["sad", "angry"])
    assert [item["label"] for item in dataset] == [0, 3]
    assert dataset[0]["audio"].shape == (1600,)
    chosen = dataset.filtered_sorted(
        key_test={"emotion": lambda emotion: emotion == "happy"}
    )
    assert [item["id"] for item in chosen] == ["u1"]
    assert [item["id"] for item in dataset] == ["u0", "u1"]


def test_items_without_their_transcript_are_made_where_they_are_wanted(
    tokenizer,
):
    rows = {"u1": row("sad"), "u2": row("angry", text="")}
    inputs = TextInputs(tokenizer, prompt=Told())
    made = build_datasets({"train": rows}, LABELS, None, inputs, untold=True)
    told, silent = made["train"][0], made["train"][1]
    assert told["untold_prompt"] == ("", "Ross", []) != told["prompt"]
    assert torch.equal(told["untold_tokens"], silent["tokens"])
