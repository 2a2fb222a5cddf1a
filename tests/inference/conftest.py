"""What the tests of trained systems share: the run of the session, and more."""

import pytest

import train
from emoq_modules.dataio.manifest_reader import read_manifest

FOLD = "tiny/emoq/fold1-seed1234"


@pytest.fixture(scope="module")
def run(tiny_results):
    """The folder of stage 2 of the session's run."""
    return tiny_results / FOLD / "stage2"


@pytest.fixture(scope="module")
def rows(tiny_results):
    """Its test utterances."""
    return read_manifest(
        tiny_results / "tiny/manifests/fold1/test.json",
        ["angry", "happy", "sad"],
        tiny_results / "data",
    )


@pytest.fixture
def train_tiny(tiny_results, tmp_path):
    """Trains another stage 2 on the same data, and the same stage 1."""

    def train_with(*options, variant="emoq"):
        results = tmp_path / "trained"
        weights = tiny_results / FOLD / "stage1/emoq_former.safetensors"
        first = "--fusion_weights", str(weights)
        for part in ("data", "tiny/manifests"):
            (results / part).parent.mkdir(parents=True, exist_ok=True)
            (results / part).symlink_to(tiny_results / part)
        train.main(
            [
                *("hparams/emoq_stage2.yaml", "--preset", "tests/tiny.yaml"),
                *("--results_folder", str(results), *options),
                *(first if variant == "emoq" else ()),
            ]
        )
        return results / FOLD.replace("emoq", variant) / "stage2"

    return train_with
