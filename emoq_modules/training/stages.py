"""What each of EmoQ's two stages computes and minimizes.

How they train is in ``EmoQBrain``, which both are.
"""

import speechbrain as sb
import torch
from speechbrain.utils.distributed import main_process_only

from emoq_modules.lobes.losses import MALLoss
from emoq_modules.lobes.pipeline import decode, embed
from emoq_modules.training.brain import EmoQBrain


class Stage1Brain(EmoQBrain):
    """Stage 1: EmoQ-Former and an auxiliary classifier by MAL, Equation 6.

    Modules: ``fusion`` and ``head``, the classifier, which is discarded after
    the stage. Also reads ``hparams.mal``, the loss. Of a ``MALLoss`` the line
    of an epoch tells more than the loss, as ``loss_parts`` gives it.

    Example
    -------
    >>> from speechbrain.dataio.batch import PaddedBatch
    >>> from emoq_modules import FocalLoss, MALLoss, MeanPooledAudio, SupConLoss
    >>> brain = Stage1Brain(
    ...     modules={
    ...         "fusion": MeanPooledAudio(audio_dim=8),
    ...         "head": torch.nn.Linear(8, 2),
    ...     },
    ...     hparams={
    ...         "mal": MALLoss(SupConLoss(), FocalLoss()),
    ...         "store_precision": "fp16",
    ...         "augment_audio": None,
    ...         "augment_frames": None,
    ...     },
    ... )
    >>> tokens = torch.tensor([0, 2])
    >>> batch = PaddedBatch(
    ...     [
    ...         {"id": "a", "audio": frames, "tokens": tokens, "label": label}
    ...         for label, frames in enumerate(torch.rand(2, 20, 8))
    ...     ]
    ... )
    >>> predictions = brain.compute_forward(batch, sb.Stage.TRAIN)
    >>> loss = brain.compute_objectives(predictions, batch, sb.Stage.TRAIN)
    >>> loss.backward()
    >>> predictions[1].shape, loss.shape
    (torch.Size([2, 2]), torch.Size([]))
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sums = {}  # over the batches of the epoch

    def compute_forward(self, batch, stage):
        """Computes the embeddings and the classifier's logits.

        Arguments
        ---------
        batch : speechbrain.dataio.batch.PaddedBatch
            With ``audio`` and ``tokens``.
        stage : sb.Stage
            What the batch is for.

        Returns
        -------
        embeddings : torch.Tensor
            ``(B, d_h)``
        logits : torch.Tensor
            Unnormalized log-probabilities, ``(B, C)``.
        """
        batch = batch.to(self.device, non_blocking=True)
        options = self.pipeline_options(stage, batch)
        embeddings = embed(self.modules, batch, **options)
        self.keep_tested(embeddings, stage)
        # In half precision logits would tie, and ties go to the first class.
        with torch.autocast(embeddings.device.type, enabled=False):
            return embeddings, self.modules["head"](embeddings.float())

    def compute_objectives(self, predictions, batch, stage):
        """Computes the loss, Eq. 6; outside training keeps the posteriors.

        Arguments
        ---------
        predictions : tuple of torch.Tensor
            What ``compute_forward`` gives.
        batch : speechbrain.dataio.batch.PaddedBatch
            With ``label`` and, outside training, ``dialogue``.
        stage : sb.Stage
            What the batch is for.

        Returns
        -------
        torch.Tensor
            The loss, a scalar.
        """
        embeddings, logits = predictions
        if stage != sb.Stage.TRAIN:
            posteriors = logits.float().softmax(dim=-1)
            self.stats.append(batch.id, posteriors, batch.label, batch.dialogue)
        loss = self.hparams.mal(embeddings, logits, batch.label)
        if stage == sb.Stage.TRAIN and isinstance(self.hparams.mal, MALLoss):
            self._add_up(self.hparams.mal, logits.shape[1])
        return loss

    def _add_up(self, mal, num_classes):
        """Adds a batch to ``sums``; on the device, for which nobody waits."""
        parts = {"batches": torch.ones(()), **mal.terms}
        if mal.scl is not None:
            labels, paired = mal.scl.anchors
            counted = torch.stack([torch.ones_like(paired), paired]).float()
            counts = counted.new_zeros(2, num_classes)
            parts["anchors"] = counts.index_add(1, labels, counted)
        for name, part in parts.items():
            # What is not finite has no part in SpeechBrain's mean loss either.
            part = part.nan_to_num(0.0, 0.0, 0.0)
            self.sums[name] = self.sums.get(name, 0) + part

    def loss_parts(self):
        """Gives what the loss was made of in training, and begins anew.

        Returns
        -------
        dict
            Means over batches of ``SCL`` and ``focal``, which add up to the
            loss; of all anchors, and of those of the rarest class, the share in
            percent that had a positive.
        """
        sums, self.sums = self.sums, {}
        counts, batches = sums.pop("anchors", None), sums.pop("batches", 0)
        parts = {name: float(total / batches) for name, total in sums.items()}
        if counts is not None:
            anchors, paired = counts.cpu()
            rarest = anchors.where(anchors > 0, torch.inf).argmin()
            name = f"paired anchors of {self.hparams.labels[rarest]}"
            parts["paired anchors"] = float(100 * paired.sum() / anchors.sum())
            parts[name] = float(100 * paired[rarest] / anchors[rarest])
        return parts

    def init_optimizers(self):
        """Also has checkpoints keep what the loss and ``sums`` hold."""
        super().init_optimizers()
        # Optional: earlier versions kept none.
        self.checkpointer.add_recoverable(
            "mal", self, _load_mal, _save_mal, optional_load=True
        )


class Stage2Brain(EmoQBrain):
    """Stage 2: EmoQ-Former, projector and LoRA by weighted CE, Equation 7.

    Modules: ``fusion`` (absent where the prompt has no soft prompt) and
    ``decoder``, a ``SoftPromptDecoder``.

    Example
    -------
    >>> from speechbrain.dataio.batch import PaddedBatch
    >>> from emoq_modules import PromptTemplate, SoftPromptDecoder
    >>> from emoq_modules.lobes.small_backbones import build_llm
    >>> labels = ["happy", "sad"]
    >>> decoder = SoftPromptDecoder(
    ...     build_llm(getfixture("tmp_path"), ["Good morning!"], labels),
    ...     PromptTemplate("Which of {labels}?", "Transcript: {text}"),
    ...     labels,
    ... )
    >>> brain = Stage2Brain(
    ...     modules={"decoder": decoder},
    ...     hparams={"store_precision": "fp16"},
    ... )
    >>> prompt = decoder.prompt.encode("Good morning!")
    >>> batch = PaddedBatch([{"id": "a", "prompt": prompt, "label": 0}])
    >>> predictions = brain.compute_forward(batch, sb.Stage.VALID)
    >>> predictions[1].shape
    torch.Size([1, 2])
    """

    def compute_forward(self, batch, stage):
        """Computes the loss, and outside training the posteriors too.

        Arguments
        ---------
        batch : speechbrain.dataio.batch.PaddedBatch
            With ``prompt`` and ``label``; and with ``audio`` and ``tokens``
            where there is a soft prompt.
        stage : sb.Stage
            What the batch is for.

        Returns
        -------
        loss : torch.Tensor
            The loss, a scalar.
        posteriors : torch.Tensor | None
            ``(B, C)``; None in training.
        """
        batch = batch.to(self.device, non_blocking=True)
        embeddings, loss, posteriors = decode(
            self.modules,
            batch,
            batch.label,
            with_posteriors=stage != sb.Stage.TRAIN,
            class_weights=self.class_weights,
            **self.pipeline_options(stage, batch),
        )
        self.keep_tested(embeddings, stage)
        return loss, posteriors

    def compute_objectives(self, predictions, batch, stage):
        """Passes the loss on, Eq. 7; outside training keeps the posteriors.

        Arguments
        ---------
        predictions : tuple
            What ``compute_forward`` gives.
        batch : speechbrain.dataio.batch.PaddedBatch
            Outside training, with ``label`` and ``dialogue``.
        stage : sb.Stage
            What the batch is for.

        Returns
        -------
        torch.Tensor
            The loss, a scalar.
        """
        loss, posteriors = predictions
        if stage != sb.Stage.TRAIN:
            self.stats.append(batch.id, posteriors, batch.label, batch.dialogue)
        return loss

    def loss_weight(self, batch):
        """Sum of the token weights of Eq. 7 in a batch, a float."""
        return self.hparams.decoder.answer_weight(
            batch.label, self.class_weights
        )

    @property
    def class_weights(self):
        """What the weight of each emotion word is multiplied with, or None."""
        return getattr(self.hparams, "class_weights", None)


@main_process_only
def _save_mal(brain, path):
    state = {"sums": brain.sums, "mal": brain.hparams.mal.state_dict()}
    torch.save(state, path)


def _load_mal(brain, path, end_of_epoch):
    state = torch.load(path, map_location=brain.device, weights_only=True)
    brain.sums = state["sums"]
    brain.hparams.mal.load_state_dict(state["mal"])
