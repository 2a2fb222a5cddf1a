"""EmoQ: speech emotion recognition with an EmoQ-Former and an LLM.

Besides transformers, the decoder needs peft.
"""
