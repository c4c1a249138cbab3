"""Activation checkpointing runs a forward twice and must count once."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vq_components import DeadCodeRevival


class Block(nn.Module):
    """An encoder's last layer and its quantizer; results as a plain tuple of tensors, as reentrant checkpoints want."""

    def __init__(self, quantizer):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.quantizer = quantizer

    def forward(self, z):
        quantized, indices, loss, _ = self.quantizer(self.layer(z))
        return quantized, indices, loss


def plain(block, z):
    return block(z)


def checkpointed(block, z):
    return checkpoint(block, z, use_reentrant=False)


def checkpointed_reentrant(block, z):
    return checkpoint(block, z, use_reentrant=True)


def compiled_around(block, z):
    return torch.compile(checkpointed, backend="aot_eager")(block, z)


def compiled_inside(block, z):
    return checkpoint(torch.compile(block, backend="aot_eager"), z, use_reentrant=False)


def compiled_inside_reentrant(block, z):
    return checkpoint(torch.compile(block, backend="aot_eager"), z, use_reentrant=True)


@pytest.mark.parametrize(
    "way", [checkpointed, checkpointed_reentrant, compiled_around, compiled_inside, compiled_inside_reentrant]
)
def test_a_checkpointed_forward_counts_once(build, differing, way):
    """Defect 15: same state, values and gradients as without, from the start's forward on, with lively revival."""
    block = Block(build(revival=DeadCodeRevival(threshold=0.9, decay=0.0)))
    other = copy.deepcopy(block)
    for _ in range(3):
        z = torch.randn(40, 4)
        results = []
        for module, run in ((block, way), (other, plain)):
            module.zero_grad()
            own = z.clone().requires_grad_()
            quantized, indices, loss = run(module, own)
            (loss + quantized.square().mean()).backward()
            results.append((quantized, indices, loss, own.grad, *(p.grad for p in module.parameters())))
        for value, expected in zip(*results, strict=True):
            torch.testing.assert_close(value, expected)
        assert not differing(block.quantizer, other.quantizer)
    assert torch.equal(block.quantizer.decode(indices), quantized)


@pytest.mark.parametrize("way", [checkpointed, checkpointed_reentrant])
def test_an_accumulation_window_of_checkpointed_forwards(build_started, differing, way):
    block = Block(build_started())
    block.quantizer.update_()
    other = copy.deepcopy(block)
    for module, run in ((block, way), (other, plain)):
        torch.manual_seed(1)
        total = 0
        for _ in range(3):  # three forwards, one backward
            quantized, _, loss = run(module, torch.randn(40, 4, requires_grad=True))
            total = total + loss + quantized.square().mean()
        total.backward()
        module.quantizer.update_()
    assert not differing(block.quantizer, other.quantizer)
    for parameter, expected in zip(block.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


def test_a_compiled_checkpoint_raises_if_its_backward_comes_after_the_next_forward(build_started):
    """The compiler keeps statistics for the backward, and the next forward changes them: an error, no wrong numbers."""
    torch.compiler.reset()
    block = Block(build_started())
    block.quantizer.update_()
    losses = [compiled_around(block, torch.randn(40, 4, requires_grad=True))[2] for _ in range(2)]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses[0].backward()


def test_a_forward_after_a_backward_counts_again(build_started):
    """The recomputation is told by being inside a backward, not by having happened once."""
    quantizer = build_started()
    quantizer.update_()
    for count in (1, 2):
        checkpoint(Block(quantizer), torch.randn(40, 4, requires_grad=True), use_reentrant=False)[2].backward()
        assert quantizer.embedding.pending_counts.sum() == 40 * count
