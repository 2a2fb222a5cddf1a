"""Rows about the extraction of features: files in, stored frames out."""

from functools import partial
from itertools import count

import torch
from safetensors.torch import load_file

from benchmarks.machine import count_operations
from benchmarks.reference_audio import PlainEncoder, extract_plainly
from benchmarks.rows import compare, share
from emoq_modules.dataio.audio import SAMPLE_RATE, read_audio
from emoq_modules.dataio.feature_extraction import extract_features
from emoq_modules.dataio.feature_store import FeatureStore

_OTHER_BATCH_S = 60.0
_COUNTED_S = 10  # of audio, whose operations are counted
# Both sides round to half precision, and bfloat16 rounds before that.
_TOLERANCES = {torch.float32: 0.005, torch.bfloat16: 0.1}


def extraction_rows(stage, rows, repetitions, ceiling):
    """Measures the extraction, from the rows' files to files.

    The ceiling is of the device: operations a second at best.
    """
    plain = PlainEncoder(stage.encoder)
    numbers = count()
    size = stage.hparams["train_loader"]["batch_size"]
    in_order = [row["wav"] for row in rows.values()]
    by_length = sorted(rows.values(), key=lambda row: row["duration"])

    def ours(**options):
        store = FeatureStore(
            stage.folder / f"extracted-{next(numbers)}",
            stage.encoder.identity,
            stage.hparams["store_precision"],
        )
        extract_features(
            *(rows.values(), stage.encoder, store, read_audio),
            device=stage.device,
            progressbar=False,
            **options,
        )
        return store

    def theirs(paths):
        folder = stage.folder / f"plain-{next(numbers)}"
        extract_plainly(paths, plain, folder, size)
        return folder

    _check_same(ours(), theirs(in_order), in_order, plain.model.dtype)
    on_gpu = torch.device(stage.device).type == "cuda"
    row = compare(
        "feature extraction: ours / in the order of the file",
        ours,
        partial(theirs, in_order),
        repetitions,
        goal=3.0,
    )
    yield row
    yield compare(
        "feature extraction: the reference's in the order of length / of the "
        "file",
        partial(theirs, [row["wav"] for row in by_length]),
        partial(theirs, in_order),
        repetitions,
    )
    yield compare(
        f"feature extraction: batches as they are / of {_OTHER_BATCH_S:.0f} s",
        ours,
        partial(ours, max_batch_seconds=_OTHER_BATCH_S),
        repetitions,
    )
    yield compare(
        "feature extraction: all of it / reading alone",
        ours,
        lambda: list(map(read_audio, in_order)),
        repetitions,
    )
    seconds = sum(r["duration"] for r in rows.values())
    yield share(
        "feature extraction: audio / time it takes",
        seconds / row.ours,
        1.0,
        "times real time",
        goal=3000.0 if on_gpu else None,
    )
    sound = torch.randn(1, _COUNTED_S * SAMPLE_RATE, device=stage.device)
    counted = count_operations(
        partial(stage.encoder, sound, torch.ones(1, device=stage.device))
    )
    yield share(
        "feature extraction: operations / those of a matrix product",
        counted / _COUNTED_S * seconds / row.ours / 1e12,
        ceiling / 1e12,
        "TFLOP/s",
        goal=0.5 if on_gpu else None,
    )


def _check_same(store, folder, paths, dtype):
    """Both sides have to compute the same, or the ratio means nothing."""
    tolerance = _TOLERANCES[dtype]
    for number, path in enumerate(paths):
        file = folder / f"{number:05d}.safetensors"
        torch.testing.assert_close(
            store.load(path),
            load_file(file)["frames"].float(),
            atol=tolerance,
            rtol=tolerance,
        )
