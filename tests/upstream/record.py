"""Runs SpeechBrain's recipe from given weights and writes down each loss.

``python record.py WEIGHTS LOSSES SCRIPT HPARAMS [OPTIONS]``, by itself: it
imports the SpeechBrain that the contribution is laid into.
"""

import json
import runpy
import sys

import speechbrain as sb
import torch


def main(weights, losses, *command):
    """Runs the command with what is fresh replaced by the weights."""
    on_fit_start, fit_batch = sb.Brain.on_fit_start, sb.Brain.fit_batch
    found = []

    def start(brain):
        state = torch.load(weights, weights_only=True)
        missing, unknown = brain.modules.load_state_dict(state, strict=False)
        assert not unknown, unknown
        trained = {
            name
            for name, parameter in brain.modules.named_parameters()
            if parameter.requires_grad
        }
        # Of stage 2 the EmoQ-Former is what the recipe takes from stage 1.
        from_stage_1 = {name for name in trained if "emoq_former." in name}
        fresh = trained - (from_stage_1 if brain.hparams.stage == 2 else set())
        assert fresh == trained - set(missing), fresh & set(missing)
        on_fit_start(brain)

    def record(brain, batch):
        loss = fit_batch(brain, batch)
        found.append(float(loss))
        return loss

    sb.Brain.on_fit_start, sb.Brain.fit_batch = start, record
    sys.argv = list(command)
    runpy.run_path(command[0], run_name="__main__")
    with open(losses, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
