"""What a run would train on: its corpus, and some of its prompts."""

import logging
from collections import Counter

import soundfile

from emoq_modules.dataio.datasets import TextInputs, build_datasets
from emoq_modules.lobes.backbones import load_tokenizer
from emoq_modules.training.run_data import read_corpus

_ROWS = 5


def log_once():
    """Shows what preparation logs, and what several steps say once."""
    told = set()

    def is_new(record):
        message = record.getMessage()
        return not (message in told or told.add(message))

    handler = logging.StreamHandler()
    handler.addFilter(is_new)
    logging.root.addHandler(handler)
    logging.root.setLevel(logging.INFO)


def preview(run):
    """Prepares the corpus of a run, and tells what there is in it.

    Counts are by split and class, with hours and sampling rates; training
    utterances of some classes have their prompt as the LLM reads it, with
    ``<AUDIO>`` for the voice.
    """
    manifests, dialogues = read_corpus(run.hparams)
    labels = run.hparams["labels"]
    lines = [f"{run.hparams['corpus']}, fold {run.hparams['fold']}"]
    for split, rows in manifests.items():
        counts = Counter(row.emotion for row in rows.values())
        hours = sum(row.duration for row in rows.values()) / 3600
        speakers = len({row.speaker for row in rows.values()} - {""})
        told = ", ".join(f"{label} {counts[label]}" for label in labels)
        lines.append(
            f"{split}: {len(rows)} utterances ({told}), {hours:.2f} hours, "
            f"{speakers} speakers"
        )
    if run.hparams.get("audio_encoder", True) is not None:
        wavs = {row.wav for rows in manifests.values() for row in rows.values()}
        rates = Counter(map(_rate, wavs))
        told = ", ".join(f"{rate} ({n})" for rate, n in rates.most_common())
        lines.append(f"sampling rates: {told}")
    prompt = _prompt_of(run) if run.hparams["stage"] == 2 else None
    inputs = TextInputs(prompt=prompt)
    if prompt is not None:
        inputs.speaker_in_prompt = run.hparams["speaker_in_prompt"]
        inputs.context_turns = run.hparams["context_turns"]
    firsts = {}
    for row in manifests["train"].values():
        firsts.setdefault(row.emotion, row)
    rows = list(firsts.values())[:_ROWS]
    items = build_datasets(
        {"train": {row.id: row for row in rows}},
        labels,
        None,
        inputs,
        dialogues,
    )["train"]
    for row, item in zip(rows, items, strict=True):
        lines += ["", f"{row.id}, {row.duration:.2f} s: {row.emotion}"]
        lines.append(prompt.as_text(item["prompt"]) if prompt else row.text)
    return "\n".join(lines)


def _rate(wav):
    try:
        return f"{soundfile.info(wav).samplerate} Hz"
    except soundfile.LibsndfileError:
        return "of FFmpeg"


def _prompt_of(run):
    keys = "prompt", "llm_tokenizer", "words", "chat_template_options"
    made = run.load(*keys)
    return made["prompt"].bind(
        load_tokenizer(made["llm_tokenizer"]),
        run.hparams["labels"],
        words=made["words"],
        **(made["chat_template_options"] or {}),
    )
