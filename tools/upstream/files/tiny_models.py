#!/usr/bin/env python3
"""Makes the tiny models that this recipe's tests train, and manifests.

The recordings are upstream's samples, their emotions are made up.
"""

import json
from pathlib import Path

import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from emoq_modules.checkpoints import save_trainable
from emoq_modules.offline import build_llm, build_text_encoder
from emoq_modules.qformer import EmoQFormer

FOLDER = "tests/tmp/EmoQ"
SAMPLES = "tests/samples/annotation"
# The classes of each YAML, by its name without the stage.
LABELS = {}  # filled in from the YAMLs
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def write_manifest(path, source, split, labels):
    """Writes the rows of a samples' manifest, with the columns EmoQ reads.

    Arguments
    ---------
    path : Path
        Where to write; its folder is made.
    source : str
        The samples' manifest in ``SAMPLES``, without the suffix.
    split : str
        The split, with which the ids begin.
    labels : list of str
        Emotion words, which the rows get in turn.

    Returns
    -------
    list of str
        The transcripts.
    """
    with open(f"{SAMPLES}/{source}.json", encoding="utf-8") as file:
        rows = json.load(file)
    manifest = {
        # An utterance is in one split alone.
        f"{split}_{name}": {
            "wav": row["wav"],
            "duration": float(row["duration"]),
            "speaker": row["spk_id"],
            "session": row["spk_id"],
            "dialogue": row["spk_id"],
            "turn": turn,
            "text": row["words"],
            "emotion": labels[turn % len(labels)],
        }
        for turn, (name, row) in enumerate(rows.items())
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest, indent=4), encoding="utf-8")
    return [row["text"] for row in manifest.values()]


if __name__ == "__main__":
    torch.manual_seed(0)
    texts = []
    for name, labels in LABELS.items():
        for split, source in (
            ("train", "ASR_train"),
            ("valid", "ASR_dev"),
            ("test", "ASR_dev"),
        ):
            path = Path(FOLDER, "manifests", name, f"{split}.json")
            texts += write_manifest(path, source, split, labels)
    words = sorted({word for labels in LABELS.values() for word in labels})
    hubert = HubertModel(
        HubertConfig(
            **SIZES,
            conv_dim=[16] * 7,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            do_stable_layer_norm=True,
            feat_extract_norm="layer",
        )
    )
    hubert.save_pretrained(f"{FOLDER}/hubert")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(
        f"{FOLDER}/hubert"
    )
    roberta = build_text_encoder(f"{FOLDER}/roberta", texts, **SIZES)
    # Weights of the usual size would hardly tell one prompt from another.
    build_llm(
        f"{FOLDER}/llm",
        texts,
        words,
        **SIZES,
        num_key_value_heads=1,
        initializer_range=0.4,
    )
    # What stage 2 takes from stage 1.
    fusion = EmoQFormer(roberta, audio_dim=16, num_queries=3, pooling_heads=2)
    save_trainable(fusion, f"{FOLDER}/emoq_former.safetensors")
