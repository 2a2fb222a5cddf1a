"""Chooses hyperparameters on validation utterances, and never looks at a test.

    python -m benchmarks.choose hparams/emoq_stage1.yaml \\
        --preset hparams/presets/cpu.yaml \\
        --preset recipes/EMODB/emodb4.yaml \\
        --preset recipes/EMODB/tuning.yaml --data_folder /data/emodb \\
        --fold all --setting "lr: 0.0003" --setting "lr: 0.001"

A setting is YAML of an experiment's keys; other options are those of train.py.
Each is trained on each fold, with each seed of a list (--seed 1,2,3). What they
have on the folds' validation utterances together is printed, in order, as the
mean over seeds, and the best is named. What is done is kept.
"""

import argparse
import logging
from statistics import fmean

from ruamel.yaml import YAML

from emoq_modules.dataio.digests import digest_of
from emoq_modules.evaluation.metrics import MEASURES
from emoq_modules.evaluation.results import (
    RESULTS_FILE,
    VALID_PREDICTIONS_FILE,
    pool_results,
)
from emoq_modules.training.configuration import (
    change,
    plan_runs,
    read_options,
)
from emoq_modules.training.experiment import run_folds
from emoq_modules.training.run_folder import check_settings


def main(arguments=None):
    """Trains every setting, and prints what each has on validation."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("experiment")
    parser.add_argument("--preset", action="append", default=[])
    parser.add_argument("--fold", default="all")
    parser.add_argument("--seed", help="one, or several as 1,2,3")
    parser.add_argument("--setting", action="append", required=True)
    own, rest = parser.parse_known_args(arguments)
    # Each run logs its figures on the test utterances. A level would not last:
    # SpeechBrain sets those of its loggers when a run begins.
    logging.getLogger("speechbrain.utils.train_logger").addFilter(
        lambda record: " - test " not in record.getMessage()
    )
    options, run_opts = read_options(own.experiment, rest)
    scores = {}
    for setting in own.setting:
        keys = YAML(typ="safe").load(setting)
        chosen = change(options, **{"variant": variant(setting), **keys})
        pooled = []
        for seed in own.seed.split(",") if own.seed else [None]:
            seeded = chosen if seed is None else change(chosen, seed=int(seed))
            runs = plan_runs(own.experiment, own.preset, seeded, own.fold)
            for run in runs:
                check_settings(run)
                if not (run.folder / RESULTS_FILE).exists():
                    run_folds([run], run_opts)
            valid = [run.folder / VALID_PREDICTIONS_FILE for run in runs]
            pooled.append(pool_results(valid).summarize())
        means = {m: fmean(stats[m] for stats in pooled) for m in MEASURES}
        scores[setting] = means["UA"]
        figures = ", ".join(f"{m} {mean:.1f}" for m, mean in means.items())
        print(f"{setting}: {figures} ({pooled[0]['n']} utterances)", flush=True)
    print(f"best by UA: {max(scores, key=scores.get)}")


def variant(setting):
    """The name of the runs of a setting."""
    return f"choice-{digest_of(setting.encode())[:8]}"


if __name__ == "__main__":
    main()
