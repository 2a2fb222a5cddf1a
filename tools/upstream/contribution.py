"""All files of the contribution, as upstream is to have them."""

import ast
import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from emoq_modules import _PUBLIC
from upstream import table
from upstream.flatten import flatten
from upstream.imports import MoveError, Names, inline, rewrite

ROOT = Path(__file__).parents[2]
FILES = Path(__file__).with_name("files")

_FILE, _PROGRAM, _LINK = "100644", "100755", "120000"
_TINY = "tests/tmp/EmoQ"
_SAMPLES = "tests/samples/annotation"
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


def contribution(checkout):
    """Builds the parts of the series.

    Arguments
    ---------
    checkout : Checkout
        For what upstream has, and how it formats its code.

    Returns
    -------
    list of tuple
        Branch, message, and files: mode and content (bytes) by path.

    Raises
    ------
    ConfigurationError, FlattenError, MoveError
        If a file of ours cannot become one of upstream's.
    """
    names = our_names()
    parts = [
        _modules(table.LOSSES, names, python38=True),
        _modules(table.MODULES, names) | _package(names),
        _modules(table.TRAINING, names),
        _recipes(checkout, names),
    ]
    settings = checkout.read("pyproject.toml")
    return [
        (branch, message, _checked(_formatted(files, settings)))
        for (branch, message), files in zip(
            table.SERIES.items(), parts, strict=True
        )
    ]


def our_names():
    """What the table says that names become."""
    places = {**table.LOSSES, **table.MODULES, **table.TRAINING}
    modules = {
        # Test files see each other by their bare names.
        ours: theirs.rpartition(".")[2] if _is_test(ours) else theirs
        for ours, theirs in places.items()
    }
    return Names({**modules, **table.PREPARE}, _PUBLIC, table.RENAMED)


def _is_test(module):
    return module.startswith("test_")


def _source(module):
    folder = "tests." if _is_test(module) else ""
    path = ROOT / f"{(folder + module).replace('.', '/')}.py"
    return path.read_text(encoding="utf-8")


def _moved(module, names, **options):
    try:
        return rewrite(
            _source(module),
            names,
            table.REWORDED.get(module),
            table.LEFT_OUT_TESTS.get(module, ()),
            **options,
        )
    except MoveError as error:
        raise MoveError(f"{module}: {error}") from None


def _modules(places, names, **options):
    return {
        f"{theirs.replace('.', '/')}.py": (
            _FILE,
            _moved(ours, names, **options),
        )
        for ours, theirs in places.items()
    }


def _own(name, names=None):
    """A file that is written for upstream."""
    text = (FILES / name).read_text(encoding="utf-8")
    return text if names is None else rewrite(text, names)


def _package(names):
    folder = table.EMOQ.replace(".", "/")
    return {
        f"{folder}/__init__.py": (_FILE, _own("emoq_init.py")),
        "speechbrain/integrations/tests/conftest.py": (
            _FILE,
            _own("integrations_conftest.py", names),
        ),
    }


def _recipes(checkout, names):
    script = inline(_own("train.py"), _source(table.INLINED), table.INLINED)
    script = rewrite(script, names)
    tiny = rewrite(_own("tiny_models.py"), names)
    files = {}
    for corpus, recipe in table.RECIPES.items():
        folder = f"recipes/{corpus}/EmoQ"
        prepare = table.PREPARE[recipe["prepare"]]
        readme = _own(f"README_{corpus}.md") + _own("README_end.md")
        required = _requirements(recipe["requirements"])
        files |= {
            f"{folder}/train.py": (_FILE, script),
            f"{folder}/README.md": (_FILE, readme),
            f"{folder}/extra_requirements.txt": (_FILE, required),
            # As upstream has it: the script lies with the corpus, and each of
            # its recipes has a link.
            f"recipes/{corpus}/{prepare}.py": (
                _FILE,
                _moved(recipe["prepare"], names),
            ),
            f"{folder}/{prepare}.py": (_LINK, f"../{prepare}.py"),
        }
        setups = f"tests/recipes/setup/{folder.replace('/', '_')}_train"
        rows, maker = [], None
        for name, preset in recipe["presets"].items():
            for stage, experiment in table.EXPERIMENTS.items():
                yaml = f"hparams/{name}_stage{stage}"
                text = flatten(
                    ROOT / experiment,
                    [ROOT / preset],
                    f"python train.py {yaml}.yaml {recipe['options']}",
                    names,
                    table.LEFT_OUT_KEYS,
                )
                files[f"{folder}/{yaml}.yaml"] = _FILE, text
                # One program makes what all of them need.
                setup = f"{setups}/{yaml.replace('/', '_')}"
                files[setup] = (_LINK, maker) if maker else (_PROGRAM, tiny)
                maker = maker or setup.rpartition("/")[2]
                rows.append(_row(corpus, folder, yaml, prepare, name, stage))
            labels = _labels(files[f"{folder}/{yaml}.yaml"][1])
            files |= _samples(checkout, name, labels)
        files[f"tests/recipes/{corpus}.csv"] = (
            _FILE,
            _with_rows(checkout, f"tests/recipes/{corpus}.csv", rows),
        )
    return files


def _labels(text):
    words = re.search(r"^labels: \[(.*)\]", text, re.MULTILINE)[1]
    return words.split(", ")


def _requirements(more):
    """Lines of ``extra_requirements.txt``, with the bounds of our setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    bounds = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    lines = []
    for name in sorted([*table.REQUIREMENTS, *more]):
        line = next(b for b in bounds if re.match(rf"{name}[<>=]", b))
        lines.append(line)
    return "\n".join(lines) + "\n"


def _row(corpus, folder, yaml, prepare, name, stage):
    own, limit = _TESTS[stage]
    flags = {
        **_SHARED_BY_STAGES,
        "manifest_folder": f"{_SAMPLES}/EmoQ/{name}",
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


def _with_rows(checkout, path, rows):
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


def _samples(checkout, name, labels):
    """Manifests of upstream's sample recordings, whose labels are made up."""
    files = {}
    for split, source in (
        ("train", "ASR_train"),
        ("valid", "ASR_dev"),
        ("test", "ASR_dev"),
    ):
        rows = json.loads(checkout.read(f"{_SAMPLES}/{source}.json"))
        manifest = {
            f"{split}_{id_}": {
                "wav": row["wav"],
                "duration": float(row["duration"]),
                "speaker": row["spk_id"],
                "session": row["spk_id"],
                "dialogue": row["spk_id"],
                "turn": turn,
                "text": row["words"],
                "emotion": labels[turn % len(labels)],
            }
            for turn, (id_, row) in enumerate(rows.items())
        }
        path = f"{_SAMPLES}/EmoQ/{name}/{split}.json"
        files[path] = _FILE, json.dumps(manifest, indent=4) + "\n"
    return files


def _formatted(files, settings):
    """Sorts imports and breaks lines as upstream's settings say."""
    programs = {
        path: text
        for path, (mode, text) in files.items()
        if mode != _LINK and (path.endswith(".py") or text.startswith("#!"))
    }
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "pyproject.toml").write_text(settings, encoding="utf-8")
        # A program without a suffix is Python to us alone.
        places = {
            p: folder / (p if p.endswith(".py") else f"{p}.py")
            for p in programs
        }
        for path, text in programs.items():
            places[path].parent.mkdir(parents=True, exist_ok=True)
            places[path].write_text(text, encoding="utf-8")
        fix = ["check", "--quiet", "--fix", "--select", "I,F401"]
        for command in (fix, ["format", "--quiet"]):
            done = subprocess.run(
                [sys.executable, "-m", "ruff", *command, "."],
                cwd=folder,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise MoveError(
                    f"ruff {command[0]} fails on what was moved: "
                    f"{(done.stdout + done.stderr).strip()[:500]}"
                )
        files = dict(files)
        for path, place in places.items():
            text = place.read_text(encoding="utf-8")
            files[path] = files[path][0], text
    return files


def _checked(files):
    """The files' bytes, if nothing of our package is named in them."""
    for path, (_, text) in files.items():
        for number, line in enumerate(text.splitlines(), 1):
            if "emoq_modules" in line:
                raise MoveError(
                    f"{path}, line {number}, would still name emoq_modules: "
                    f"{line.strip()}"
                )
    return {p: (mode, text.encode()) for p, (mode, text) in files.items()}
