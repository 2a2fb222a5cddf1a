#!/usr/bin/env python3
"""Makes the tiny models that this recipe's test trains."""

import json

import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from emoq_modules.checkpoints import save_trainable
from emoq_modules.offline import build_llm, build_text_encoder
from emoq_modules.qformer import EmoQFormer

FOLDER = "tests/tmp/EmoQ"
MANIFEST = "tests/samples/annotation/ASR_train.json"
# Of all corpora.
WORDS = [
    "angry",
    "disgust",
    "fear",
    "happy",
    "joy",
    "neutral",
    "sad",
    "sadness",
    "surprise",
]
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}

if __name__ == "__main__":
    torch.manual_seed(0)
    with open(MANIFEST, encoding="utf-8") as file:
        texts = [row["words"] for row in json.load(file).values()]
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
        WORDS,
        **SIZES,
        num_key_value_heads=1,
        initializer_range=0.4,
    )
    # What stage 2 takes from stage 1.
    fusion = EmoQFormer(roberta, audio_dim=16, num_queries=3, pooling_heads=2)
    save_trainable(fusion, f"{FOLDER}/emoq_former.safetensors")
