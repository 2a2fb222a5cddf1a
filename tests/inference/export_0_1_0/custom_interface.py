from emoq_modules import EmotionRecognizer  # noqa: F401
