"""The one way from a batch to posteriors."""

import pytest
import torch
from speechbrain.dataio.batch import PaddedBatch
from torch import nn

from emoq_modules.lobes.pipeline import decode, embed, leave_out, to_precision
from tests.lobes.test_audio_encoder import OwnEncoder


class Given(nn.Module):
    """In the place of a module: returns what it is given."""

    def forward(self, *given):
        return given


@pytest.fixture
def modules():
    return nn.ModuleDict({"encoder": OwnEncoder(), "fusion": Given()})


def batch(*wavs):
    one = torch.tensor([0, 2])
    return PaddedBatch([{"audio": wav, "tokens": one} for wav in wavs])


def test_frames_on_the_fly_are_rounded_as_in_the_store(modules):
    wavs = batch(torch.randn(9))
    frames, *_ = embed(modules, wavs, "bf16")
    assert torch.equal(frames, frames.bfloat16().float())
    exact, _ = modules["encoder"](*wavs.audio)
    assert torch.equal(frames, to_precision(exact, "bf16").float())


def test_stored_frames_are_taken_as_they_are(modules):
    del modules["encoder"]
    stored = torch.randn(9, 3)
    frames, lens, *tokens = embed(modules, batch(stored), "fp16")
    assert torch.equal(frames[0], stored) and lens.tolist() == [1]
    assert tokens[0].tolist() == [[0, 2]]


def test_each_waveform_is_augmented_by_itself(modules):
    heard = []

    def halve(wav):
        heard.append(wav)
        return wav[:, : wav.shape[1] // 2]

    wavs = [torch.randn(9), torch.randn(4), torch.randn(6)]
    frames, lens, *_ = embed(modules, batch(*wavs), "fp32", halve)
    for found, wav in zip(heard, wavs, strict=True):
        assert torch.equal(found[0], wav)
    assert frames.shape[:2] == (3, 4)
    assert (lens * 4).tolist() == [4, 2, 3]


def test_frames_are_augmented_all_together(modules):
    frames, *_ = embed(
        modules, batch(torch.randn(9)), "fp32", augment_frames=torch.zeros_like
    )
    assert not frames.any()


def test_without_fusion_there_is_no_embedding_and_the_decoder_is_told_so():
    class Decoder(nn.Module):
        def forward(self, *given):
            return None, given

    modules = nn.ModuleDict({"decoder": Decoder()})
    prompts = PaddedBatch([{"prompt": ([1], [2])}])
    embeddings, _, given = decode(modules, prompts, store_precision="fp16")
    assert embeddings is None
    assert given == (None, prompts.prompt, None, True, None)


def test_values_that_a_precision_cannot_hold_are_refused():
    with pytest.raises(ValueError, match="do not fit fp16.*Try.*bf16"):
        to_precision(torch.tensor([1e6]), "fp16")


def utterances(number):
    """A batch of utterances with and without their transcripts."""
    return PaddedBatch(
        [
            {
                "audio": torch.randn(9, 3),
                "tokens": torch.tensor([0, *range(5, 5 + index % 3), 2]),
                "untold_tokens": torch.tensor([0, 2]),
                "prompt": ([index], [7]),
                "untold_prompt": ([index], []),
            }
            for index in range(number)
        ]
    )


def test_transcripts_are_left_out_of_tokens_and_prompt_alike():
    torch.manual_seed(0)
    batch = utterances(400)
    before, lens = batch.tokens
    heard = leave_out(batch, 0.3, 0.2)
    tokens, new_lens = batch.tokens
    untold = torch.tensor([after == [] for _, after in batch.prompt])
    assert 90 < untold.sum() < 150 and 50 < (~heard).sum() < 110
    assert not (untold & ~heard).any()  # something is left of each
    assert [prompt[0] for prompt in batch.prompt] == [[i] for i in range(400)]
    counts = (new_lens * tokens.shape[1]).round()
    assert (counts[untold] == 2).all()
    assert (tokens[untold, :2] == torch.tensor([0, 2])).all()
    assert torch.equal(tokens[~untold], before[~untold])
    assert torch.equal(new_lens[~untold], lens[~untold])


def test_nothing_is_drawn_where_nothing_is_left_out(modules):
    batch, state = utterances(3), torch.get_rng_state()
    assert leave_out(batch, 0.0, 0.0) is None
    assert torch.equal(torch.get_rng_state(), state)
    del modules["encoder"]
    _, lens, *_ = embed(
        modules, utterances(2), "fp16", heard=torch.tensor([True, False])
    )
    assert lens.tolist() == [1, 0]
