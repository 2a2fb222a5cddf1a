"""Frames of HuBERT as one computes them today with transformers alone.

What the project's encoder and its extraction are measured against: the model
and the feature extractor of transformers as they are, batches in the order of
the file, padded on the right, and each utterance's frames in a file of its own.
The files are read in between, by the thread that computes.
"""

from pathlib import Path

import soundfile
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, Wav2Vec2FeatureExtractor

from emoq_modules.dataio.audio import SAMPLE_RATE


class PlainEncoder(nn.Module):
    """A model of transformers, and what prepares its input.

    Its weights are the project's encoder's, whose methods it never calls.
    """

    def __init__(self, encoder):
        super().__init__()
        self.model = AutoModel.from_config(encoder.model.config)
        self.model.load_state_dict(encoder.model.state_dict())
        self.model.to(encoder.model.device, encoder.model.dtype)
        self.model.requires_grad_(False)
        self.prepare = Wav2Vec2FeatureExtractor(
            do_normalize=encoder.front_end.do_normalize,
            return_attention_mask=True,
        )
        self.train(False)

    def train(self, mode=True):
        """It is frozen: no dropout, and no masks as of pre-training."""
        return super().train(False)

    def forward(self, wavs, wav_lens):
        """Frames ``(B, T', dim)`` and relative lengths, of a padded batch."""
        counts = (wav_lens * wavs.shape[1]).round().long().tolist()
        frames, counts = self.frames(
            [wav[:n] for wav, n in zip(wavs.cpu().numpy(), counts, strict=True)]
        )
        lens = torch.tensor(counts, device=frames.device) / max(counts)
        return frames, lens

    @torch.no_grad()
    def frames(self, wavs):
        """Frames of waveforms, arrays of ``(T,)`` each, and their numbers."""
        inputs = self.prepare(
            wavs, sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt"
        )
        mask = inputs.attention_mask.to(self.model.device)
        output = self.model(
            inputs.input_values.to(self.model.device, self.model.dtype),
            attention_mask=mask,
        ).last_hidden_state
        counts = self.model._get_feat_extract_output_lengths(mask.sum(dim=1))
        return output.float(), counts.tolist()


def extract_plainly(paths, encoder, folder, batch_size):
    """Writes the frames of each recording, at 16 kHz, to a file of its own.

    A file has the recording's name, and in it are ``frames``, ``(T', dim)``, in
    half precision.
    """
    folder.mkdir(parents=True)
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        wavs = [soundfile.read(path, dtype="float32")[0] for path in batch]
        frames, counts = encoder.frames(wavs)
        for path, utterance, count in zip(batch, frames, counts, strict=True):
            save_file(
                {"frames": utterance[:count].half().cpu().contiguous()},
                folder / f"{Path(path).stem}.safetensors",
            )
