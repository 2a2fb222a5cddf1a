"""An LLM that ranks share out computes what a whole one does."""

import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from emoq_modules.errors import ConfigurationError
from emoq_modules.lobes.decoder import PAPER_LORA
from emoq_modules.training.distributed import own_rank
from emoq_modules.training.sharding import shard_llm
from tests.lobes.test_decoder import DIM, TARGETS, encode, make_decoder

EMBEDDINGS = torch.randn(3, DIM, generator=torch.Generator().manual_seed(1))
# Shares of unlike length.
SHARES = [slice(0, 1), slice(1, 3)]


def new_decoder(llm, gradient_checkpointing):
    return make_decoder(
        llm,
        lora={**PAPER_LORA, "lora_dropout": 0.0},
        gradient_checkpointing=gradient_checkpointing,
    ).train()


def run(decoder, share):
    """Loss and posteriors of a share, and the gradients."""
    inner = getattr(decoder, "module", decoder)  # of DDP
    batch = [part[share] for part in (EMBEDDINGS, encode(inner), TARGETS)]
    decoder.zero_grad()
    loss, _ = decoder(*batch, with_posteriors=False)
    loss.backward()
    gradients = [p.grad for p in decoder.parameters() if p.requires_grad]
    with torch.no_grad():
        _, posteriors = decoder(*batch)
    return [loss.detach(), posteriors], gradients


@pytest.mark.parametrize(
    ("nodes", "gradient_checkpointing"), [(1, False), (1, True), (2, False)]
)
def test_shared_out_llm_gives_the_same_losses_and_gradients(
    start_ranks, tmp_path, monkeypatch, llm, nodes, gradient_checkpointing
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")

    def work():
        decoder = new_decoder(llm, gradient_checkpointing)
        shard_llm(decoder, "cpu")
        sizes = [
            (parameter.to_local().numel(), parameter.numel())
            for parameter in decoder.llm.model.layers.parameters()
            if isinstance(parameter, DTensor)
        ]
        kept, whole = map(sum, zip(*sizes, strict=True))
        assert 0.49 * whole < kept < 0.51 * whole  # of its node
        decoder = DistributedDataParallel(decoder)
        share = SHARES[own_rank() % 2]
        run(decoder, share)  # nothing stays of a step
        found = run(decoder, share)
        torch.save(found, tmp_path / f"{own_rank()}.pt")

    assert start_ranks(2 * nodes, work) == [0, 0] * nodes
    decoder = new_decoder(llm, gradient_checkpointing)
    expected = [run(decoder, share) for share in SHARES]
    means = [
        sum(parts) / 2
        for parts in zip(*(of_rank for _, of_rank in expected), strict=True)
    ]
    assert max(mean.abs().max() for mean in means) > 0.01
    for rank, (measured, _) in enumerate(expected):
        found, gradients = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, measured, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradients, means, rtol=1e-4, atol=1e-5)


def test_quantized_weights_are_refused(start_ranks, llm):
    def work():
        decoder = make_decoder(llm)
        layer = decoder.llm.model.layers[0].self_attn.q_proj.base_layer
        layer.weight = torch.nn.Parameter(layer.weight.to(torch.uint8), False)
        with pytest.raises(ConfigurationError, match="quantized"):
            shard_llm(decoder, "cpu")

    assert start_ranks(2, work) == [0, 0]


def test_one_process_has_nobody_to_share_with(llm):
    with pytest.raises(ConfigurationError, match="start them with torchrun"):
        shard_llm(make_decoder(llm), "cpu")
