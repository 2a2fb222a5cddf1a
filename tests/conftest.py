"""What several test files share."""

import logging
import multiprocessing
import os
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from huggingface_hub import constants
from speechbrain.utils.logger import TqdmCompatibleStreamHandler

import train
from emoq_modules.lobes.small_backbones import build_llm, build_text_encoder
from emoq_modules.training.configuration import StageRun
from emoq_modules.training.distributed import init_ranks

# The models are tiny: more threads would only get in each other's way.
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
# Experiments and presets are named relative to the root, as users name them.
os.chdir(ROOT)
# A recipe's scripts, to be run and not to be collected.
collect_ignore = ["small_recipe"]
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
TRANSCRIPTS = [
    "Oh no, what have you done to my car?",
    "I can't believe we won the game!",
    "The meeting is on Tuesday.",
    "Leave me alone.",
]
LABELS = ["angry", "happy", "neutral", "sad"]


@pytest.fixture(scope="session", autouse=True)
def no_description_of_the_environment():
    """SpeechBrain asks pip and git at each start of a run, for a second."""
    with pytest.MonkeyPatch.context() as patch:
        place = "speechbrain.utils.logger.get_environment_description"
        patch.setattr(place, str)
        yield


@pytest.fixture(autouse=True)
def console_of_this_test():
    """A run logs to the streams of its own test, which are then closed."""
    yield
    for handler in list(logging.root.handlers):
        if type(handler) in (
            logging.StreamHandler,
            TqdmCompatibleStreamHandler,
        ):
            logging.root.removeHandler(handler)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data, where there is one."""
    if not SHARED_DATA.exists():
        pytest.skip(f"needs the real data in {SHARED_DATA}, which is not there")
    return SHARED_DATA


@pytest.fixture(scope="session")
def trained():
    """Finds the folder of a model with trained weights, where there is one."""

    def find(name):
        folder = Path("~/.cache/emoq-models").expanduser() / name
        if not folder.is_dir():
            pytest.skip(f"needs trained weights in {folder}; none are there")
        return folder

    return find


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory):
    """The folder of a small RoBERTa."""
    return build_text_encoder(tmp_path_factory.mktemp("roberta"), TRANSCRIPTS)


@pytest.fixture(scope="session")
def llm(tmp_path_factory):
    """The folder of a small Qwen2."""
    return build_llm(tmp_path_factory.mktemp("qwen2"), TRANSCRIPTS, LABELS)


@pytest.fixture(scope="session")
def tiny_results(tmp_path_factory):
    """The results folder of both stages, trained on the corpus of tones."""
    results = tmp_path_factory.mktemp("results")
    train.main(
        [
            *("hparams/emoq_stage2.yaml", "--preset", "tests/tiny.yaml"),
            *("--results_folder", str(results)),
        ]
    )
    return results


@pytest.fixture(scope="session")
def recognizer_folder(tiny_results):
    """The recognizer of that run."""
    run = tiny_results / "tiny/emoq/fold1-seed1234/stage2"
    return str(run / "recognizer")


@pytest.fixture
def use_hub(monkeypatch):
    """Lets Hugging Face's client talk to another address."""

    def use(url):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return use


def free_port():
    """A port of this machine at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def no_hub(use_hub):
    """There is nobody at the hub's address."""
    use_hub(f"http://127.0.0.1:{free_port()}")


def flip_a_byte(path, place=-1):
    """Changes one bit of a file: what a disk or a copy may do to it."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


class Disk:
    """What has been flushed to the disk, in the place of a power cut."""

    def __init__(self, monkeypatch):
        self.synced = set()
        self._at = {}
        fsync, replace = os.fsync, os.replace

        def watched_fsync(handle):
            self.synced.add(Path(f"/proc/self/fd/{handle}").resolve())
            fsync(handle)

        def watched_replace(source, target):
            source, target = Path(source).resolve(), Path(target).resolve()
            self._at[target] = {source, *source.rglob("*")}, {*self.synced}
            self.synced.discard(target.parent)
            replace(source, target)

        monkeypatch.setattr(os, "fsync", watched_fsync)
        monkeypatch.setattr(os, "replace", watched_replace)

    def unsafe_at(self, path, others=()):
        """What of a file or folder, and of others, got there after its name."""
        written, synced = self._at[path.resolve()]
        return (written | set(others)) - synced


@pytest.fixture
def disk(monkeypatch):
    """Tells what has been flushed to the disk, and when."""
    return Disk(monkeypatch)


def load_keys(hparams_yaml, *keys):
    """Makes the objects of some keys of a composed experiment."""
    return StageRun(hparams_yaml).load(*keys)


def fork(work, *args):
    """Starts a process that does some work with what there is here."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=work, args=args)
    process.start()
    return process


def _run_rank(rank, size, port, work, joined):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if joined:
        init_ranks({"distributed_backend": "gloo"})
    work()
    if joined:
        dist.destroy_process_group()


@pytest.fixture(scope="session")
def start_ranks():
    """Starts ranks that do some work, and gives their exit codes.

    Without torchrun's agents: so it is with a rank on each of several nodes.
    Where one fails the others are killed. Ranks whose work it is to join each
    other, as ``train.main`` does, are started with ``joined=False``.
    """

    def start(size, work, joined=True):
        port = free_port()
        processes = [
            fork(_run_rank, rank, size, port, work, joined)
            for rank in range(size)
        ]
        deadline = time.monotonic() + 180
        codes = [None]
        try:
            while None in codes and not any(codes):
                assert time.monotonic() < deadline, codes
                time.sleep(0.02)
                codes = [process.exitcode for process in processes]
        finally:
            for process in processes:
                process.kill()
        return codes

    return start
