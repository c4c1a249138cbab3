"""Faults that other code bases are known to have, where no other file looks for them."""

import copy

import pytest
import torch

from vq_components import FSQ, LFQ, DeadCodeRevival, EMAVectorQuantizer, VectorQuantizer


def lively(quantizer):
    for module in quantizer.modules():
        if isinstance(module, VectorQuantizer | EMAVectorQuantizer):
            module.revival = DeadCodeRevival(threshold=0.9, decay=0.0)
    return quantizer


def tensors_of(quantizer):
    """Every parameter and buffer with the memory that it is in."""
    return {name: (id(tensor), tensor.data_ptr()) for name, tensor in quantizer.state_dict(keep_vars=True).items()}


def test_state_stays_in_its_place_in_memory(build_any, build_used, results):
    """Optimizers, data-parallel buckets and captured graphs hold on to it: start, update and revival write into it."""
    for make in (build_any, build_used):
        quantizer = lively(make())
        before = tensors_of(quantizer)
        optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True), *quantizer.parameters()], lr=0.1)
        for by_hand in (False, True):
            results(quantizer, torch.randn(40, 4))
            optimizer.step()
            if by_hand:
                quantizer.update_()
        if hasattr(quantizer, "set_codebook_"):
            quantizer.set_codebook_(torch.randn(quantizer.codebook.shape))
        quantizer.load_state_dict(make().state_dict())
        assert tensors_of(quantizer) == before


def test_no_buffer_keeps_a_graph(build_any, results):
    """One that did would grow with every step, and could not be copied."""
    quantizer = lively(build_any())
    for _ in range(3):
        results(quantizer, torch.randn(40, 4))
        assert not any(buffer.requires_grad for buffer in quantizer.buffers())
        quantizer = copy.deepcopy(quantizer)


def test_decoding_leaves_the_indices_alone(build_used):
    quantizer = build_used()
    indices = torch.randint(-1, 16, (3, 5, *quantizer.index_shape))
    kept = indices.clone()
    quantizer.decode(indices)
    assert torch.equal(indices, kept)


def test_what_is_logged_can_be_changed_in_place(build_used, differing):
    """As a sum over processes does: it is neither the loss nor another term, and no backward needs it."""
    quantizer = build_used()
    weight = torch.randn(4, 4, requires_grad=True)
    out = quantizer(torch.randn(6, 4) @ weight)
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    loss = out.loss.detach().clone()
    for number, term in enumerate(out.terms.values()):
        term.fill_(9 + number)
    assert [term.item() for term in out.terms.values()] == [9 + number for number in range(len(out.terms))]
    assert torch.equal(out.loss, loss)
    (out.loss + out.quantized.sum()).backward()
    assert weight.grad.isfinite().all()
    out.indices.fill_(-1)
    assert not differing(quantizer, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("build", [lambda: VectorQuantizer(1000, 3), lambda: EMAVectorQuantizer(1000, 3)])
def test_a_model_of_half_precision_tells_all_entries_apart(build, dtype):
    """In eight binary digits, indices would be multiples of 4, and entries would meet."""
    quantizer = build().to(dtype)
    entries = 1 + 0.1 * torch.randn(1000, 3)
    quantizer.set_codebook_(entries)
    out = quantizer(entries.repeat(2, 1))
    assert torch.equal(out.indices, torch.arange(1000).repeat(2))
    assert quantizer.embedding.pending_counts.eq(2).all()
    assert out.terms["usage"] == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("quantizer", [LFQ(10), FSQ((8, 5, 5, 5))])
def test_indices_of_half_precision_latents_are_exact(quantizer, dtype):
    size = quantizer.codebook_size
    indices = torch.arange(size)
    z = 1.5 * quantizer.decode(indices) - (0.0 if isinstance(quantizer, LFQ) else 0.1)
    assert torch.equal(quantizer(z.to(dtype)).indices, quantizer(z.to(dtype).double()).indices)
    assert quantizer(z.to(dtype)).indices.unique().numel() > size // 2
