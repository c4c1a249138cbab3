"""Activation checkpointing of the whole family: same gradients, statistics counted once, same random numbers."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vq_components import DeadCodeRevival, EMAVectorQuantizer, VectorQuantizer

WAYS = pytest.mark.parametrize("reentrant", [False, True])


class Block(nn.Module):
    """An encoder's last layer and its quantizer; results as a plain tuple of tensors, as reentrant checkpoints want."""

    def __init__(self, quantizer):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.quantizer = quantizer

    def forward(self, z, mask):
        quantized, indices, loss, _ = self.quantizer(self.layer(z), mask)
        return quantized, indices, loss


def step(block, run, z, mask, seed, *, forwards=1):
    """Results and gradients of a training step from equal random numbers, and the random state that it leaves."""
    torch.manual_seed(seed)
    block.zero_grad()
    own = z.clone().requires_grad_()
    outputs = [run(*part) for part in zip(own.chunk(forwards), mask.chunk(forwards), strict=True)]
    drawn = torch.get_rng_state()
    sum(loss + (quantized + 0.3).square().sum() for quantized, _, loss in outputs).backward()
    return outputs, own.grad, [parameter.grad for parameter in block.parameters()], drawn, torch.get_rng_state()


@WAYS
def test_a_checkpointed_forward_is_no_other(build_any, differing, reentrant):
    """From the start on, with lively revival; with updates by hand also where a backward comes after two forwards."""
    plain = Block(build_any())
    for module in plain.modules():
        if isinstance(module, VectorQuantizer | EMAVectorQuantizer):
            module.revival = DeadCodeRevival(threshold=0.9, decay=0.0)
    block = copy.deepcopy(plain)
    run = functools.partial(checkpoint, block, use_reentrant=reentrant)
    for seed, forwards in enumerate((1, 1, 1, 2, 2)):
        if forwards == 2:
            for module in (block, plain):
                module.quantizer.update_()
        z, mask = torch.randn(50, 4), torch.rand(50) > 0.3
        results, expected = (step(*way, z, mask, seed, forwards=forwards) for way in ((block, run), (plain, plain)))
        torch.testing.assert_close(results, expected)
        assert expected[1].any()
        assert not differing(block, plain)


@WAYS
@pytest.mark.parametrize("name", ["residual_dropout", "gumbel"])
def test_other_random_numbers_in_the_rerun_would_have_been_seen(family, name, reentrant):
    """Without a preserved state the rerun uses other stages, or other samples: the test above says something."""
    plain = Block(family[name]())
    for seed in range(3):
        step(plain, plain, torch.randn(50, 4), torch.ones(50, dtype=torch.bool), seed)
    plain.quantizer.update_()
    block = copy.deepcopy(plain)
    run = functools.partial(checkpoint, block, use_reentrant=reentrant, preserve_rng_state=False)
    different = 0
    for seed in range(8):
        z, mask = torch.randn(50, 4), torch.ones(50, dtype=torch.bool)
        gradients = step(block, run, z, mask, seed)[1], step(plain, plain, z, mask, seed)[1]
        different += not torch.allclose(*gradients)
    assert different > 2
