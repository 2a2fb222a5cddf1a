"""What upstream's recipe tests need of the contribution.

Each YAML has a row in a table: flags that train tiny models on upstream's
sample recordings, the files that are written then, and the loss that is
reached. Models and manifests are made by ``files/tiny_models.py``.
"""

import csv
import io

from upstream.imports import MoveError

_TINY = "tests/tmp/EmoQ"
_SHARED_BY_STAGES = {
    "data_folder": "tests/samples/ASR",
    "data_root": "tests/samples/ASR",
    "prepare": "null",
    "results_folder": f"{_TINY}/results",
    "audio_source": f"{_TINY}/hubert",
    "audio_dim": 16,
    "text_encoder": f"{_TINY}/roberta",
    "embedding_dim": 16,
    "num_queries": 3,
    "pooling_heads": 2,
    "fusion_weights": f"{_TINY}/emoq_former.safetensors",
    "precision": "fp32",
    "eval_precision": "fp32",
    "batch_size": 8,
    "num_workers": 0,
    "lr": 0.01,
    "number_of_epochs": 40,
    "patience": 100,
}
# What a stage's flags are besides, and the training loss that it begins above
# and, all epochs over the eight utterances, ends below.
_TESTS = {
    1: (
        {
            "fusion_weights": f"{_TINY}/of_stage1.safetensors",
            "temperature": 0.3,
        },
        "<2.0",
    ),
    2: (
        {
            "llm": f"{_TINY}/llm",
            "llm_dtype": "float32",
            "lora_dropout": 0.0,
        },
        "<2.5",
    ),
}
_WRITTEN = (
    "train.py",
    "env.log",
    "log.txt",
    "train_log.txt",
    "hyperparams.yaml",
    "predictions.csv",
    "test_stats.txt",
    "save",
)


def row_of(corpus, folder, yaml, prepare, name, stage):
    """The row of one YAML.

    Arguments
    ---------
    corpus : str
        The table's name.
    folder : str
        The recipe's.
    yaml : str
        Path of the YAML in it, without the suffix.
    prepare : str
        Name of the prepare script.
    name : str
        That of the preset, and of its manifests.
    stage : int
        1 or 2.

    Returns
    -------
    dict
        By the table's columns; those that are not there stay empty.
    """
    own, limit = _TESTS[stage]
    flags = {
        **_SHARED_BY_STAGES,
        "manifest_folder": f"{_TINY}/manifests/{name}",
        **own,
    }
    written = ",".join(_WRITTEN)
    return {
        "Task": "Emotion_recognition",
        "Dataset": corpus,
        "Script_file": f"{folder}/train.py",
        "Hparam_file": f"{folder}/{yaml}.yaml",
        "Data_prep_file": f"{folder}/{prepare}.py",
        "Readme_file": f"{folder}/README.md",
        "test_debug_flags": " ".join(f"--{k}={v}" for k, v in flags.items()),
        "test_debug_checks": (
            f"file_exists=[{written}] performance_check=[train_log.txt, "
            f"train loss, {limit}, epoch: {flags['number_of_epochs']}]"
        ),
    }


def with_rows(checkout, path, rows):
    """A table of recipe tests, upstream's or a new one, with rows added."""
    model = checkout.read("tests/recipes/IEMOCAP.csv")
    header = model.splitlines()[0].split(",")
    unknown = rows[0].keys() - set(header)
    if unknown:
        raise MoveError(
            f"{path} has no column {', '.join(sorted(unknown))}: upstream "
            "tests recipes in another way; tools/upstream has to follow."
        )
    there = checkout.read(path) if path in checkout.at_base else ""
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    if not there:
        writer.writeheader()
    writer.writerows(rows)
    end = "\n" if there and not there.endswith("\n") else ""
    return there + end + text.getvalue()
