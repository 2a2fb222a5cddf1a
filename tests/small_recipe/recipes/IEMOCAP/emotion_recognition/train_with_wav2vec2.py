"""The same with the frames of wav2vec 2.0 and their mean."""

import sys

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml

from train import EmoIdBrain as EcapaBrain, run


class EmoIdBrain(EcapaBrain):
    """Frames, their mean, and a linear layer."""

    def compute_forward(self, batch, stage):
        """Log-probabilities of the classes, (B, C)."""
        batch = batch.to(self.device)
        wavs, lens = batch.sig
        outputs = self.modules.wav2vec2(wavs, lens)
        outputs = self.hparams.avg_pool(outputs, lens).flatten(1)

        outputs = self.modules.output_mlp(outputs)
        outputs = self.hparams.log_softmax(outputs)
        return outputs

    def compute_objectives(self, predictions, batch, stage):
        """The loss; evaluation counts errors too."""
        emoid, _ = batch.emo_encoded
        emoid = emoid.squeeze(1)
        loss = self.hparams.compute_cost(predictions, emoid)
        if stage != sb.Stage.TRAIN:
            self.error_metrics.append(batch.id, predictions, emoid)
        return loss


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    run(EmoIdBrain, hparams, run_opts)
