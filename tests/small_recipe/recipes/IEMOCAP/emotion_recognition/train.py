"""A recipe of the shape of SpeechBrain's for IEMOCAP, as small as can be.

It has the hooks, names and keys that docs/reuse.md changes, and trains on any
manifests.
"""

import sys

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml


class EmoIdBrain(sb.Brain):
    """Frames, pooled by ECAPA-TDNN, and a classifier."""

    def compute_forward(self, batch, stage):
        """Scores of the classes, (B, 1, C)."""
        batch = batch.to(self.device)
        wavs, lens = batch.sig
        feats = self.modules.compute_features(wavs)
        feats = self.modules.mean_var_norm(feats, lens)

        # Embeddings + speaker classifier
        embeddings = self.modules.embedding_model(feats, lens)
        outputs = self.modules.classifier(embeddings)

        return outputs

    def compute_objectives(self, predictions, batch, stage):
        """The loss; evaluation counts errors too."""
        _, lens = batch.sig
        emoid, _ = batch.emo_encoded

        loss = self.hparams.compute_cost(predictions, emoid, lens)

        if stage != sb.Stage.TRAIN:
            self.error_metrics.append(batch.id, predictions, emoid, lens)
        return loss

    def on_stage_start(self, stage, epoch=None):
        """Starts counting errors."""
        self.error_metrics = self.hparams.error_stats()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs, and saves after validation."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        stats = {
            "loss": stage_loss,
            "error": self.error_metrics.summarize("average"),
        }
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats(
                {"epoch": epoch},
                train_stats={"loss": self.train_loss},
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(meta=stats, num_to_keep=1)
        else:
            self.hparams.train_logger.log_stats({}, test_stats=stats)


def dataio_prep(hparams):
    """The three data sets."""
    label_encoder = sb.dataio.encoder.CategoricalEncoder()

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    @sb.utils.data_pipeline.takes("emo")
    @sb.utils.data_pipeline.provides("emo_encoded")
    def label_pipeline(emo):
        return label_encoder.encode_label_torch(emo)

    datasets = {
        name: sb.dataio.dataset.DynamicItemDataset.from_json(
            json_path=hparams[f"{name}_annotation"],
            replacements={"data_root": hparams["data_folder"]},
            dynamic_items=[audio_pipeline, label_pipeline],
            output_keys=["id", "sig", "emo_encoded"],
        )
        for name in ("train", "valid", "test")
    }
    lab_enc_file = f"{hparams['save_folder']}/label_encoder.txt"
    label_encoder.load_or_create(
        path=lab_enc_file,
        from_didatasets=[datasets["train"]],
        output_key="emo",
    )

    return datasets


def run(brain_class, hparams, run_opts):
    """Trains and tests."""
    datasets = dataio_prep(hparams)
    brain = brain_class(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    loader = hparams["dataloader_options"]
    brain.fit(
        hparams["epoch_counter"],
        datasets["train"],
        datasets["valid"],
        train_loader_kwargs=loader,
        valid_loader_kwargs=loader,
    )
    brain.evaluate(datasets["test"], test_loader_kwargs=loader)


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    run(EmoIdBrain, hparams, run_opts)
