"""EmoQ: speech emotion recognition with an EmoQ-Former and an LLM.

After Y. Yang and M.-W. Mak, "EmoQ: Speech Emotion Recognition via Speech-Aware
Q-Former and Large Language Model", 2025, https://arxiv.org/abs/2509.15775.
Besides transformers, the decoder needs peft.
"""
