"""Parts that any SpeechBrain recipe can take.

The EmoQ-Former, losses, decoder and prompt, frozen audio encoders, and what
loads backbones. Here lives nothing that knows a corpus, a run or a command.
"""
