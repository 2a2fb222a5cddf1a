"""The training of EmoQ: one ``sb.Brain`` for each of its two stages.

What both do (gradient accumulation, clipping, schedule, checkpoints, metrics)
is in ``EmoQBrain``; a stage adds what it computes and minimizes.
"""

import math
import os
import time
from operator import attrgetter
from statistics import fmean
from types import SimpleNamespace

import speechbrain as sb
import torch
from speechbrain.dataio.sampler import ReproducibleRandomSampler
from speechbrain.utils.checkpoints import torch_recovery
from speechbrain.utils.logger import get_logger
from transformers import SchedulerType, get_scheduler

from emoq_modules.errors import CheckpointError, ConfigurationError
from emoq_modules.evaluation.calibration import WAYS
from emoq_modules.evaluation.metrics import MEASURES, EmotionStats
from emoq_modules.lobes.pipeline import leave_out
from emoq_modules.lobes.pooling import mean_over_time
from emoq_modules.lobes.weights import load_trainable
from emoq_modules.training.distributed import (
    join,
    own_rank,
    rank_batches,
    world_size,
)

logger = get_logger(__name__)


class EmoQBrain(sb.Brain):
    """The training loop of both stages.

    Takes the arguments of ``sb.Brain``. Modules: ``fusion``, an ``EmoQFormer``
    or what stands in its place, and ``encoder`` where the audio frames are
    computed on the fly. It reads of ``hparams``: ``labels``, ``modules``,
    ``learning_rates``, ``scheduler``, ``warmup_ratio``, ``selection_metric``,
    ``epoch_counter``, ``history``, ``store_precision``, ``augment_audio``,
    ``augment_frames`` and ``train_logger``.
    """

    loaded_epoch = None  # that of the weights, where evaluation loaded them

    def pipeline_options(self, stage, batch):
        """Options of ``pipeline.embed``; in training a batch is augmented."""
        options = {"store_precision": self.hparams.store_precision}
        if stage == sb.Stage.TRAIN:
            options["augment_audio"] = self.hparams.augment_audio
            options["augment_frames"] = self.hparams.augment_frames
            options["heard"] = leave_out(
                batch,
                getattr(self.hparams, "text_dropout", 0.0),
                getattr(self.hparams, "audio_dropout", 0.0),
            )
        return options

    def keep_tested(self, embeddings, stage):
        """Keeps the embeddings of a test, one an utterance, if there are."""
        if isinstance(embeddings, tuple):
            embeddings = mean_over_time(*embeddings)
        if stage == sb.Stage.TEST and embeddings is not None:
            self.tested_embeddings += embeddings.detach().float().cpu().unbind()

    def loss_parts(self):
        """What the line of an epoch tells of its training, besides the loss."""
        return {}

    def loss_weight(self, batch):
        """Weight of a batch among accumulated ones: its utterances."""
        return len(batch.id)

    def make_dataloader(self, dataset, stage, **kwargs):
        """Makes a data loader, which has a generator of its own.

        Otherwise starting to iterate draws from torch's generator, and a
        resumed epoch, which starts once more, would go another way. In
        training on several ranks SpeechBrain shares the utterances out among
        them; in evaluation a rank gets its batches of ``rank_batches``.
        """
        kwargs.setdefault("generator", torch.Generator())
        # From there a batch goes to the GPU while it is at the one before.
        on_gpu = torch.device(self.device).type == "cuda"
        kwargs.setdefault("pin_memory", on_gpu)
        if stage == sb.Stage.TRAIN and kwargs.get("shuffle"):
            # As SpeechBrain does it in one process; for several it would take
            # an order that does not depend on the seed.
            kwargs["shuffle"] = False
            kwargs["sampler"] = ReproducibleRandomSampler(
                dataset, seed=os.environ.get("SB_GLOBAL_SEED", 0)
            )
        if stage != sb.Stage.TRAIN and world_size() > 1:
            kwargs["batch_sampler"] = rank_batches(
                len(dataset), kwargs.pop("batch_size", 1)
            )
        loader = super().make_dataloader(dataset, stage, **kwargs)
        if stage == sb.Stage.TRAIN:
            self.batches_per_epoch = len(loader)
            if self.train_sampler is None:
                # SpeechBrain tells only samplers of its own the epoch.
                self.train_sampler = kwargs.get("sampler")
        return loader

    def fit_batch(self, batch):
        """Adds a batch to the gradient, and steps when enough are in it.

        Unlike SpeechBrain's, the mean over accumulated batches is weighted by
        what is in each, and the last batches of an epoch count too.
        """
        last = self.step == self.batches_per_epoch
        should_step = last or self.step % self.grad_accumulation_factor == 0
        self.on_fit_batch_start(batch, should_step)
        with self.no_sync(not should_step):
            with self.training_ctx:
                outputs = self.compute_forward(batch, sb.Stage.TRAIN)
                loss = self.compute_objectives(outputs, batch, sb.Stage.TRAIN)
            self.check_loss_isfinite(loss)
            weight = self.loss_weight(batch)
            self.scaler.scale(loss * weight).backward()
            self.accumulated_weight += weight
        if should_step:
            self.optimizers_step()
        self.on_fit_batch_end(batch, outputs, loss, should_step)
        return loss.detach().cpu()

    def optimizers_step(self):
        """One step on the weighted mean of the accumulated losses.

        Clips over all parameter groups together (SpeechBrain's loop clips the
        first alone), and leaves a step with a gradient that is not finite out.
        """
        self.scaler.unscale_(self.optimizer)
        parameters = [
            parameter
            for group in self.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        scale = world_size() / self._sum_over_ranks(self.accumulated_weight)
        for parameter in parameters:
            parameter.grad.mul_(scale)
        limit = self.max_grad_norm if self.max_grad_norm > 0 else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        if torch.isfinite(norm) or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            logger.warning("Left out a step: its gradient is not finite.")
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.accumulated_weight = 0
        self.optimizer_step += 1

    def _sum_over_ranks(self, value):
        if world_size() == 1:
            return value
        value = torch.tensor(float(value), device=self.device)
        torch.distributed.all_reduce(value)
        return value.item()

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        # A checkpoint holds no gradient, so none is made between two steps.
        due = super()._should_save_intra_epoch_ckpt(
            last_ckpt_time, steps_since_ckpt
        )
        return due and self.accumulated_weight == 0

    def on_fit_start(self):
        """Forgets which epoch was loaded: the weights are about to change."""
        if own_rank() > 0:
            # So far all have the same state, and would drop out alike.
            torch.manual_seed(torch.initial_seed() + own_rank())
        super().on_fit_start()
        self.loaded_epoch = None
        before, now = self.schedule.batches_per_epoch, self.batches_per_epoch
        counter = self.hparams.epoch_counter
        done = counter.current >= counter.limit or counter.should_stop
        if before != now and not done:
            self._find_place(before, now)

    def _find_place(self, before, now):
        """Counts batches and steps as if all had been those of these ranks."""
        logger.warning(
            f"An epoch had {before} batches and now has {now}: the run goes on "
            "from where it was, its learning rate too, but the result is not "
            "that of one number of processes."
        )
        factor = self.grad_accumulation_factor
        self.step = self.step * now // before // factor * factor
        loader = self.checkpointer.recoverables["dataloader-TRAIN"]
        if loader._speechbrain_recovery_skip_to is not None:
            loader._speechbrain_recovery_skip_to = self.step
        whole = self.hparams.epoch_counter.current * math.ceil(now / factor)
        self.schedule.last_epoch = whole + self.step // factor
        self.schedule.batches_per_epoch = now

    def evaluate(self, test_set, *args, split="test", **kwargs):
        """Measures the weights of the best epoch; ``stats`` holds the result.

        ``tested_embeddings`` holds the embeddings, ``(d_h,)`` each, in the
        order of ``stats``; the log calls the set by the name of its ``split``,
        which is that of a way of asking where that is not training's.
        """
        self.evaluated_split = split
        return super().evaluate(test_set, *args, **kwargs)

    def evaluate_batch(self, batch, stage):
        """Evaluates a batch; keeps its loss and first place in ``stats``."""
        first = len(self.stats.ids)
        loss = super().evaluate_batch(batch, stage)
        self.evaluated.append((first, float(loss)))
        return loss

    def init_optimizers(self):
        """Gives every part its learning rate, and makes the schedule.

        Weight decay is for matrices alone, as is common: linear maps and
        embeddings; not for norms, biases, queries and a projector's scale.
        """
        self._check_choice("scheduler", [kind.value for kind in SchedulerType])
        # Used only after an epoch, which nobody should wait for in vain.
        self._check_choice("selection_metric", ["last", "loss", *MEASURES])
        rates = self.hparams.learning_rates
        groups = {(prefix, decay): [] for prefix in rates for decay in (1, 0)}
        for name, parameter in self.modules.named_parameters():
            if not parameter.requires_grad:
                continue
            name = name.replace(".module.", ".")  # as wrapped by DDP
            matching = [p for p in rates if f"{name}.".startswith(f"{p}.")]
            if not matching:
                raise ConfigurationError(
                    f"learning_rates names no part that {name} belongs to; it "
                    f"has {', '.join(rates)}."
                )
            decay = parameter.ndim > 1 and name.endswith("weight")
            groups[max(matching, key=len), decay].append(parameter)
        for prefix in rates:
            # A part may be left out or frozen, but has to be one.
            try:
                attrgetter(prefix)(SimpleNamespace(**self.hparams.modules))
            except AttributeError as error:
                raise ConfigurationError(
                    f"learning_rates has a rate for {prefix}, which is no part "
                    f"of {', '.join(self.hparams.modules)}."
                ) from error
        self.optimizer = self.opt_class(
            [
                {"params": parameters, "lr": rates[prefix]}
                | ({} if decay else {"weight_decay": 0.0})
                for (prefix, decay), parameters in groups.items()
                if parameters
            ]
        )
        self.optimizers_dict = {"optimizer": self.optimizer}
        steps = self.hparams.epoch_counter.limit * math.ceil(
            self.batches_per_epoch / self.grad_accumulation_factor
        )
        self.schedule = get_scheduler(
            self.hparams.scheduler,
            self.optimizer,
            num_warmup_steps=round(self.hparams.warmup_ratio * steps),
            num_training_steps=steps,
        )
        # Becomes a part of its state: what one step of it stands for.
        self.schedule.batches_per_epoch = self.batches_per_epoch
        self.checkpointer.add_recoverable(
            "optimizer", self.optimizer, custom_load_hook=_load_optimizer
        )
        self.checkpointer.add_recoverable("schedule", self.schedule)

    def _check_choice(self, key, allowed):
        value = getattr(self.hparams, key)
        if value not in allowed:
            raise ConfigurationError(
                f"{key} is {value!r}; it can be {', '.join(allowed)}."
            )

    def on_stage_start(self, stage, epoch=None):
        """Starts new statistics."""
        self.stats = EmotionStats(self.hparams.labels)
        self.tested_embeddings = []
        self.evaluated = []
        if stage == sb.Stage.TRAIN:
            self.accumulated_weight = 0
            self.epoch_started = time.perf_counter()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs the epoch or test, and saves a checkpoint after an epoch.

        An epoch ends with its validation, whose score the checkpoint has.
        """
        if stage == sb.Stage.TRAIN:
            self.train_stats = {"loss": float(stage_loss)} | self.loss_parts()
            return
        if world_size() > 1:
            self.stats, self.tested_embeddings, losses = join(
                self.stats, self.tested_embeddings, self.evaluated
            )
            stage_loss = fmean(losses)
        metrics = {"loss": float(stage_loss)}
        metrics.update({key: self.stats.summarize(key) for key in MEASURES})
        if stage == sb.Stage.TEST and self.evaluated_split in WAYS:
            found = ", ".join(f"{x} {metrics[x]:.2f}" for x in MEASURES)
            logger.info(f"Validation asked as {self.evaluated_split}: {found}")
            return
        if stage == sb.Stage.TEST:
            self.hparams.train_logger.log_stats(
                {"epoch loaded": self.loaded_epoch},
                **{f"{self.evaluated_split}_stats": metrics},
            )
            return
        rate = self.schedule.get_last_lr()[0]  # a scale's is far higher
        self.hparams.history.append(
            {
                "epoch": epoch,
                "lr": rate,
                "seconds": time.perf_counter() - self.epoch_started,
                "train_loss": self.train_stats["loss"],
                **{f"valid_{key}": value for key, value in metrics.items()},
            }
        )
        self.hparams.train_logger.log_stats(
            {"epoch": epoch, "lr": rate},
            train_stats=self.train_stats,
            valid_stats=metrics,
        )
        score = self._score(metrics, epoch)
        self.hparams.epoch_counter.update_metric(score)
        self.checkpointer.save_and_keep_only(
            meta={"epoch": epoch, "score": score},
            max_keys=["score"],
            # SpeechBrain's default list grows from call to call.
            importance_keys=[],
        )

    def _score(self, metrics, epoch):
        """Scores an epoch by ``selection_metric``: the higher, the better.

        It is at most 0. SpeechBrain's early stopping takes a positive score
        that is only as good as the best for a better one, and never stops.
        """
        metric = self.hparams.selection_metric
        if metric == "last":
            return float(epoch - self.hparams.epoch_counter.limit)
        return -metrics["loss"] if metric == "loss" else metrics[metric] - 100

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Loads the weights of the best epoch, and nothing else with them.

        What is there from the evaluation of another set is not loaded again.
        """
        best = self.checkpointer.find_checkpoint(max_key="score")
        if best is None:
            raise CheckpointError(
                f"There is no checkpoint in {self.checkpointer.checkpoints_dir}"
                "; train first (without --test_only)."
            )
        if best.meta["epoch"] == self.loaded_epoch:
            return
        if not self.hparams.history:
            # With --test_only nothing has been recovered.
            newest = self.checkpointer.find_checkpoint()
            history = newest.paramfiles["history"]
            self.hparams.history.load(history, end_of_epoch=True)
        self._check_best(best.meta["score"])
        for name, module in self.checkpointer.recoverables.items():
            if isinstance(module, torch.nn.Module):
                load_trainable(module, best.paramfiles[name])
        self.loaded_epoch = best.meta["epoch"]

    def _check_best(self, score):
        """Refuses to pass another epoch off as the best, which is lost."""
        scores = {
            row["epoch"]: self._score(
                {key.removeprefix("valid_"): row[key] for key in row},
                row["epoch"],
            )
            for row in self.hparams.history
        }
        best = max(scores, key=scores.get, default=None)
        if best is not None and score < scores[best]:
            folder = self.checkpointer.checkpoints_dir
            raise CheckpointError(
                f"Epoch {best} was the best, and its checkpoint in {folder} is "
                "missing or damaged. Restore it from a backup, or delete that "
                "folder to train anew."
            )


def _load_optimizer(optimizer, path, end_of_epoch):
    try:
        torch_recovery(optimizer, path, end_of_epoch)
    except ValueError as error:
        raise CheckpointError(
            f"{path} is of a run that an earlier version began, which grouped "
            f"weights otherwise ({error}): let that version finish it, or "
            "choose another --results_folder; --test_only tests what is there."
        ) from error
