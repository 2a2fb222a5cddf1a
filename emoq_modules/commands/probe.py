"""``emoq probe``: which audio encoder, and which of its layers."""

import sys

from emoq_modules.commands.options import add_command, check_device

_DESCRIPTION = """\
Fits a logistic regression to the time mean of each layer of an audio encoder,
on a corpus' own folds, and tests the layer that is best on validation. It takes
minutes, trains no part of EmoQ, and tells which encoder and layer to use: what
EmoQ makes of the same frames should not be below it.

Any other option is one of train.py: --data_folder, --audio_source, --device, or
any key of hparams/emoq_stage1.yaml.
"""
_EXAMPLES = """\
examples:
  emoq probe --preset recipes/IEMOCAP/iemocap4.yaml --data_folder /data/IEMOCAP
  emoq probe --preset recipes/EMODB/emodb4.yaml --data_folder /data/emodb \\
      --audio_source openai/whisper-base
      another encoder than HuBERT-large
  emoq probe --preset hparams/presets/offline.yaml \\
      --preset recipes/demo/demo.yaml
      log-mel frames, by their mean and deviation: no data or download needed

exit status: 0; 2 if the command is wrong.
"""


def add_probe(commands):
    """Adds ``probe`` to the commands of ``emoq``."""
    command = add_command(
        commands,
        "probe",
        _probe,
        "find the layer of an audio encoder that tells emotions best",
        _DESCRIPTION,
        _EXAMPLES,
    )
    command.add_argument(
        "--preset",
        action="append",
        default=[],
        metavar="YAML",
        help="keys to lay over hparams/emoq_stage1.yaml, a corpus' for one; "
        "repeatable",
    )
    command.add_argument(
        "--fold",
        default="all",
        metavar="K",
        help="only this fold of the corpus, or several (1,2)",
    )


def _probe(own):
    # Imports of seconds, which help and completion need not wait for.
    from transformers.utils import logging as transformers_logging

    from emoq_modules.commands.reproduce_runs import PROJECT, check_clone
    from emoq_modules.evaluation.results import measure, pool
    from emoq_modules.training.configuration import (
        change,
        merge_presets,
        plan_runs,
        read_options,
    )
    from emoq_modules.training.probe import probe_layers, probe_variant

    check_clone("probe")
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # logs take lines
    sys.path.append(str(PROJECT))  # where recipes are; train.py lies there
    experiment = PROJECT / "hparams/emoq_stage1.yaml"
    options, run_opts = read_options(experiment, own.rest)
    variant = probe_variant(merge_presets(experiment, own.preset, options))
    if not any(word.split("=")[0] == "--variant" for word in own.rest):
        options = change(options, variant=variant)
    if "device" in run_opts.overridden_args:
        check_device(run_opts["device"])
    words = ["-m", "emoq_modules", "probe"]
    words += [word for preset in own.preset for word in ("--preset", preset)]
    runs = plan_runs(experiment, own.preset, options, own.fold)
    scores, best, tested = probe_layers(
        runs, run_opts, [*words, "--fold", own.fold, *own.rest]
    )
    print(f"{'layer':>5}{'C':>8}{'valid UA':>10}")
    for score in scores:
        print(f"{score.layer:5}{score.strength:8g}{score.valid_UA:10.1f}")
    stats = pool(tested)
    found = {
        name: measure([stats], [tested.values()], name)
        for name in ("UA", "WA", "WF1")  # the one chosen by comes first
    }
    pooled = ", ".join(f"{name} {x.pooled:.1f}" for name, x in found.items())
    folds = f"{len(tested)} fold{'s' * (len(tested) > 1)}"
    print(
        f"\nbest layer {best.layer}: {pooled} "
        f"(test, {len(stats.ids)} utterances, {folds})"
    )
    if len(tested) > 1:
        means = ", ".join(f"{name} {x.folds}" for name, x in found.items())
        print(f"mean of {folds}: {means}")
    print(f"\nResults\n  {runs[0].folder.parents[1]}")
