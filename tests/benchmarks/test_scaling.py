"""The model of scaling, and what two processes show of it."""

import pytest

from benchmarks import scaling


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_follows_from_step_and_bytes(capsys):
    scaling.main(["--step_seconds", "0.1", "--gpus", "1", "8", "64"])
    printed = capsys.readouterr().out
    assert "not measured" not in printed  # it was given
    # The paper's system: 235 million trained parameters of 4 bytes.
    assert "gradients: 939 MB" in printed
    rows = [cells(line) for line in printed.splitlines() if "| " in line]
    assert [row[0] for row in rows] == ["GPUs", "--:", "1", "8", "64"]
    assert rows[2][1] == "0.0 ms: 100% to 100%"
    seconds = 2 * 63 / 64 * 0.939 / 12.5
    worst, best = 0.1 / (0.1 + seconds), 0.1 / (0.05 + seconds)
    assert rows[4][2] == f"{1000 * seconds:.1f} ms: {worst:.0%} to {best:.0%}"


def test_a_step_that_is_not_measured_says_so(capsys):
    scaling.main(["--step_tflop", "10", "--gpu", "A100", "--gpus", "1"])
    printed = capsys.readouterr().out
    assert "t is not measured: 10 TFLOP at 30% of the peak" in printed
    assert f"t: {1000 * 10 / (0.3 * 312):.0f} ms" in printed


def test_accumulated_batches_reduce_less_often(capsys):
    def of_64(*options):
        scaling.main(["--step_seconds", "0.1", "--gpus", "64", *options])
        return cells(capsys.readouterr().out.splitlines()[5])[2]

    assert of_64("--grad_accumulation_factor", "1").endswith("40% to 51%")
    assert of_64("--grad_accumulation_factor", "8").endswith("84% to 100%")


def test_two_processes_reduce_every_gradient_once(capsys):
    scaling.main(["--measure", "--hidden_size", "16"])
    rows = [cells(line) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["1", "2"]
    for _, _, _, gradients, reduced, _ in rows:
        assert gradients == reduced
        assert float(gradients.removesuffix(" MB")) == pytest.approx(
            0.2, abs=0.1
        )
