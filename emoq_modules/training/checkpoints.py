"""Checkpoints of trainable weights, which load completely or not at all.

SpeechBrain's ``Checkpointer`` with four promises added: a module is saved as
its trainable weights alone, in safetensors; loading compares every key; a
checkpoint counts only once all its files are on disk, so that a run killed
while saving goes on from the checkpoint before; and the newest is the one that
was saved last, whatever the clock says.
"""

import json
import math
import random
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    METAFNAME,
    PARAMFILE_EXT,
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.epoch_loop import EpochCounterWithStopper
from speechbrain.utils.logger import get_logger

from emoq_modules.dataio.files import (
    CONTENTS_FILE,
    describe,
    find_fault,
    flush,
    put_in_place,
    read_contents,
    write_contents,
)
from emoq_modules.errors import CheckpointError
from emoq_modules.lobes.weights import load_trainable, save_trainable
from emoq_modules.training.distributed import own_rank, world_size

logger = get_logger(__name__)

# SpeechBrain registers its base class alone, whose hooks forget the patience.
register_checkpoint_hooks(EpochCounterWithStopper)


class TrainableCheckpointer(Checkpointer):
    """A ``Checkpointer`` of trainable weights, safe against kills.

    A run goes on from the newest checkpoint. Earlier ones are kept for their
    weights, and lose the optimizer's moments, which take twice the space.

    Arguments
    ---------
    checkpoints_dir : str
        Where the checkpoints go.
    recoverables : dict
        What to save, by name.

    Example
    -------
    >>> from safetensors.torch import load_file
    >>> layer = torch.nn.Linear(2, 2)
    >>> layer.bias.requires_grad = False
    >>> checkpointer = TrainableCheckpointer(
    ...     getfixture("tmp_path"), {"layer": layer}
    ... )
    >>> checkpoint = checkpointer.save_checkpoint()
    >>> load_file(checkpoint.paramfiles["layer"]).keys()
    dict_keys(['weight'])
    """

    def __init__(self, checkpoints_dir, recoverables):
        super().__init__(checkpoints_dir)
        for name, obj in recoverables.items():
            self.add_recoverable(name, obj)

    def add_recoverable(self, name, obj, *args, **kwargs):
        """Registers an object to save; of a module, its trainable weights.

        Takes the arguments of ``Checkpointer.add_recoverable``; hooks that are
        given take precedence.
        """
        super().add_recoverable(name, obj, *args, **kwargs)
        if isinstance(obj, torch.nn.Module):
            self.custom_save_hooks.setdefault(name, save_trainable)
            self.custom_load_hooks.setdefault(name, load_trainable)

    def save_checkpoint(self, meta=(), *args, **kwargs):
        """Saves a checkpoint, and marks it as complete at the very end.

        Takes the arguments of ``Checkpointer.save_checkpoint``, on all ranks,
        and returns what was saved, on ranks but the first None. Its
        ``unixtime``, by which SpeechBrain tells the newest, is after that of
        all checkpoints before, also where the clock was set back.

        Raises
        ------
        CheckpointError
            If it cannot be written; those before are unharmed.
        """
        if if_main_process():
            self._remove_unfinished()
            meta = {"unixtime": self._time_of_next(), **dict(meta)}
        try:
            checkpoint = super().save_checkpoint(meta, *args, **kwargs)
            if if_main_process():
                flush(self.checkpoints_dir)
                contents = {
                    file.name: describe(file)
                    for file in sorted(checkpoint.path.iterdir())
                }
                write_contents(checkpoint.path, contents)
                for folder in self._list_checkpoint_dirs():
                    if folder != checkpoint.path:
                        for name in self._optimizer_files():
                            _drop_moments(folder, name)
        except (OSError, RuntimeError, SafetensorError) as error:
            # As torch and safetensors say that the disk is full.
            if if_main_process():
                self._remove_unfinished()
            raise CheckpointError(
                f"No checkpoint can be saved in {self.checkpoints_dir} "
                f"({error}). If the disk is full, make room; the same command "
                "then goes on from the checkpoint before."
            ) from error
        ddp_barrier()  # all ranks must see the same list of checkpoints
        return checkpoint

    def load_checkpoint(self, checkpoint):
        """Loads a checkpoint; an optimizer that lost its moments starts anew.

        Arguments
        ---------
        checkpoint : speechbrain.utils.checkpoints.Checkpoint
            What to load.

        Raises
        ------
        CheckpointError
            If the checkpoint is another model's.
        """
        # Before anything is loaded, where SpeechBrain would notice on the way.
        missing = ", ".join(
            name
            for name in self.recoverables
            if name not in checkpoint.paramfiles
            and not self.optional_recoverables[name]
        )
        if missing:
            raise CheckpointError(
                f"{checkpoint.path} is a checkpoint of another model: it has "
                f"no {missing}. Run with the settings it was trained with, or "
                "choose another --results_folder."
            )
        if not self._optimizer_files() <= read_contents(checkpoint.path).keys():
            logger.warning(
                f"The run goes on from {checkpoint.path}, which is not the "
                "last that was saved: the optimizer starts anew, and the "
                "result will not be quite that of a run never stopped."
            )
        super().load_checkpoint(checkpoint)

    def _list_checkpoint_dirs(self):
        """Leaves out what a kill left unfinished, and warns of damage."""
        faults = self._find_faults()
        whole = [folder for folder, fault in faults.items() if fault is None]
        for folder, fault in faults.items():
            if fault is not None:
                logger.warning_once(
                    f"Checkpoint {folder} is left out: {fault}. Restore it "
                    "from a backup, or delete it."
                )
        if faults and not whole:
            raise CheckpointError(
                f"No checkpoint in {self.checkpoints_dir} is whole ({fault}). "
                "Restore the files, or delete that folder to start over."
            )
        return whole

    def _find_faults(self):
        return {
            folder: find_fault(folder)
            for folder in super()._list_checkpoint_dirs()
            if (folder / CONTENTS_FILE).exists()
        }

    def _time_of_next(self):
        """The time, or a moment after the newest if that is of the future."""
        faults = self._find_faults()
        whole = [folder for folder, fault in faults.items() if fault is None]
        before = self._construct_checkpoint_objects(whole)
        newest = max((c.meta["unixtime"] for c in before), default=0)
        return max(time.time(), math.nextafter(newest, math.inf))

    def _remove_unfinished(self):
        for folder in self.checkpoints_dir.glob(f"{CKPT_PREFIX}+*"):
            # Either is missing if saving it was cut off, or deleting it.
            marks = folder / CONTENTS_FILE, folder / METAFNAME
            if not all(mark.exists() for mark in marks):
                shutil.rmtree(folder)
                logger.warning(f"Removed {folder}, which was not whole.")

    def _optimizer_files(self):
        return {
            f"{name}{PARAMFILE_EXT}"
            for name, obj in self.recoverables.items()
            if isinstance(obj, torch.optim.Optimizer)
        }


class RandomState:
    """The random generators' states of all ranks, for a resumed run.

    Example
    -------
    >>> path = getfixture("tmp_path") / "random.ckpt"
    >>> state = RandomState()
    >>> state.save(path)
    >>> first = torch.rand(1)
    >>> state.load(path, end_of_epoch=False)
    >>> bool(torch.rand(1) == first)
    True
    """

    @mark_as_saver
    def save(self, path):
        """Writes the states of torch, CUDA, NumPy and Python, on all ranks.

        Arguments
        ---------
        path : str or Path
            Where the first rank writes those of all.
        """
        algorithm, keys, position, has_gauss, gauss = np.random.get_state()
        state = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
            "numpy": [algorithm, keys.tolist(), position, has_gauss, gauss],
            "python": random.getstate(),
        }
        states = [state] * world_size()
        if len(states) > 1:
            torch.distributed.all_gather_object(states, state)
        if if_main_process():
            torch.save(states, path)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Restores the states; a rank or GPU that was not there keeps its own.

        Arguments
        ---------
        path : str or Path
            What ``save`` has written.
        end_of_epoch : bool
            Unused; part of SpeechBrain's interface.
        """
        states = torch.load(path, weights_only=True)
        if isinstance(states, dict):
            states = [states]  # a run of one process, by an earlier version
        if own_rank() >= len(states):
            return
        state = states[own_rank()]
        torch.set_rng_state(state["torch"])
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        np.random.set_state(state["numpy"])
        random.setstate(state["python"])


# On all ranks, unlike other hooks.
register_checkpoint_hooks(RandomState, save_on_main_only=False)


@register_checkpoint_hooks
class History(list):
    """The metrics of each epoch so far, a dict each; survives a restart.

    Example
    -------
    >>> path = getfixture("tmp_path") / "history.ckpt"
    >>> History([{"epoch": 1, "train_loss": 0.5}]).save(path)
    >>> history = History()
    >>> history.load(path, end_of_epoch=True)
    >>> history
    [{'epoch': 1, 'train_loss': 0.5}]
    """

    @mark_as_saver
    def save(self, path):
        """Writes the rows as JSON.

        Arguments
        ---------
        path : str or Path
            Where to write.
        """
        Path(path).write_text(json.dumps(self), encoding="utf-8")

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Replaces the rows by those in the file.

        Arguments
        ---------
        path : str or Path
            What ``save`` has written.
        end_of_epoch : bool
            Unused; part of SpeechBrain's interface.
        """
        self[:] = json.loads(Path(path).read_text(encoding="utf-8"))


def _drop_moments(folder, name):
    """Keeps an optimizer's rates and drops its moments.

    From the first step on, the file's content no longer counts: wherever a
    kill stops this, the checkpoint is whole.
    """
    contents = read_contents(folder)
    if contents.pop(name, None) is not None:
        write_contents(folder, contents)
    file = folder / name
    state = torch.load(file, weights_only=True, mmap=True)
    if state["state"]:
        partial = folder / f"{name}.partial"
        torch.save({**state, "state": {}}, partial)
        put_in_place(partial, file)
