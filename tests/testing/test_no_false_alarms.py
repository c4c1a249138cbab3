"""Quantizers that are correct, each by a choice of its own, pass every check."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vq_components.testing import (
    QuantizerAdapter,
    QuantizerTraits,
    check_memory,
    check_quantizer,
    check_training,
    check_two_processes,
)

SIZE, DIM = 16, 4
LEARNED = {"dim": DIM, "codebook_size": SIZE, "distance": "euclidean"}
WEIGHTS = {"commitment_weight": 0.25, "codebook_weight": 1.0}


class Plain(nn.Module):
    """The quantizer of the papers, channels second, for any number of positions."""

    def __init__(self, size=SIZE, dim=DIM):
        super().__init__()
        self.dim, self.codebook_size = dim, size
        self.embedding = nn.Embedding(size, dim)

    @property
    def codebook(self):
        return self.embedding.weight

    def search(self, vectors, codebook):
        scores = vectors @ codebook.T - codebook.square().sum(dim=1) / 2
        return scores.nan_to_num(nan=-torch.inf).argmax(dim=1)

    def quantize(self, z):
        """The output, indices, and entries of ``z``, and its loss at each position, ``(N,)``."""
        if z.shape[1] != self.dim:
            raise ValueError(f"{z.shape[1]} channels instead of {self.dim}")
        with torch.autocast("cpu", enabled=False):
            moved = z.float().movedim(1, -1)
            vectors, codebook = moved.reshape(-1, self.dim), self.codebook
            indices = self.search(vectors.detach(), codebook.detach())
            entries = F.embedding(indices, codebook)
            pull = (entries - vectors.detach()).square().mean(dim=1)
            losses = pull + 0.25 * (vectors - entries.detach()).square().mean(dim=1)
            quantized = vectors + (entries - vectors).detach()
        back = [each.view(moved.shape).movedim(-1, 1) for each in (quantized, entries)]
        return back[0].to(z.dtype), indices.view(moved.shape[:-1]), back[1], losses

    def forward(self, z):
        quantized, indices, _, losses = self.quantize(z)
        return quantized, indices, losses.sum() / max(losses.numel(), 1)


class NoLossInEvaluation(Plain):
    def forward(self, z):
        quantized, indices, loss = super().forward(z)
        return quantized, indices, loss if self.training else z.new_zeros(())


class Computed(Plain):
    """A fixed codebook behind a linear layer."""

    def __init__(self):
        super().__init__()
        self.embedding.weight.requires_grad_(False)
        self.project = nn.Linear(DIM, DIM, bias=False)

    @property
    def codebook(self):
        return self.project(self.embedding.weight)


class Fixed(nn.Module):
    """For inference: nothing has a gradient."""

    def __init__(self):
        super().__init__()
        self.register_buffer("codebook", torch.randn(SIZE, DIM))

    def forward(self, z):
        moved = z.movedim(1, -1)
        indices = torch.cdist(moved.reshape(-1, DIM).float(), self.codebook).nan_to_num(torch.inf).argmin(dim=1)
        indices = indices.view(moved.shape[:-1])
        return self.codebook[indices].movedim(-1, 1).to(z.dtype), indices


class StagesFirst(Plain):
    """Two stages of one codebook, whose indices come before the positions, as in audio codecs."""

    def forward(self, z):
        rest, output, total, stages = z, 0, 0, []
        for _ in range(2):
            _, indices, entries, losses = self.quantize(rest)
            rest, output, total = rest - entries.detach(), output + entries, total + losses
            stages.append(indices)
        output = z + (output.to(z.dtype) - z).detach()
        return output, torch.stack(stages, dim=1), total.sum() / max(total.numel(), 1)

    def encode(self, z):
        return self(z)[1]

    def decode(self, indices):
        return F.embedding(indices, self.codebook).sum(dim=1).movedim(-1, 1)


def call_stages(module, z):
    quantized, indices, loss = module(z)
    return quantized, indices.movedim(1, -1), loss


class Masked(Plain):
    """Takes its mask by keyword, and answers in another order with it."""

    def forward(self, z, scale=1.0, *, mask=None):
        if mask is None:
            return super().forward(z)
        live = mask.unsqueeze(1)
        quantized, indices, _, losses = self.quantize(z)
        losses = losses.view(mask.shape)[mask]
        loss = losses.sum() / max(losses.numel(), 1)
        return loss, torch.where(mask, indices, -1), torch.where(live, quantized, 0)


def call_masked(module, z, mask):
    loss, indices, quantized = module(z, mask=mask)
    return quantized, indices, loss


class Coarse(Plain):
    """Small integers, and float32 whatever comes in."""

    def forward(self, z):
        quantized, indices, loss = super().forward(z.float())
        return quantized, indices.to(torch.int16), loss


class SumOverPositions(Plain):
    """A mean over images of sums over positions."""

    def forward(self, z):
        quantized, indices, _, losses = self.quantize(z)
        return quantized, indices, losses.sum() / max(z.shape[0], 1)


class NumberForLoss(Plain):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)

    def forward(self, z):
        quantized, indices, _, _ = self.quantize(z)
        return quantized, indices, 0.0


class Normalized(Plain):
    """With a layer that copy.deepcopy refuses after the first forward."""

    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.project = nn.utils.weight_norm(nn.Linear(DIM, DIM))

    def forward(self, z):
        return super().forward(self.project(z.float().movedim(1, -1)).movedim(-1, 1).to(z.dtype))


STAGES = QuantizerAdapter(
    call=call_stages,
    encode=lambda module, z: module.encode(z).movedim(1, -1),
    decode=lambda module, indices, shape: module.decode(indices.movedim(-1, 1)),
)
PLAIN = QuantizerAdapter(call=lambda module, z: module(z), codebook=lambda module: module.codebook)
WITH_MASK = QuantizerAdapter(call=lambda module, z: module(z), masked=call_masked)
QUANTIZERS = {
    "plain": (Plain, None, LEARNED | WEIGHTS),
    "no-loss-in-evaluation": (NoLossInEvaluation, PLAIN, LEARNED | WEIGHTS),
    "computed": (Computed, PLAIN, LEARNED | WEIGHTS),
    "fixed": (Fixed, None, LEARNED | {"estimator": "none", "learns": False}),
    "stages-first": (StagesFirst, STAGES, {"dim": DIM, "composite": True, "index_shape": (2,)}),
    "masked": (Masked, WITH_MASK, LEARNED | {"mask": True}),
    "coarse": (Coarse, None, LEARNED),
    "sum-over-positions": (SumOverPositions, None, LEARNED | {"batched_loss": False}),
    "number-for-loss": (NumberForLoss, PLAIN, LEARNED | {"learns": False}),
    "deep-copy-refused": (
        Normalized,
        None,
        {"dim": DIM, "estimator": "other", "trains_codebook": True, "composite": True, "learns": False, "half": False},
    ),
}


@pytest.mark.filterwarnings("ignore:The tensor attribute")  # of an export of the old weight_norm
@pytest.mark.parametrize("name", QUANTIZERS)
def test_quantizer(name):
    build, adapter, traits = QUANTIZERS[name]
    torch.manual_seed(0)
    source = build if name == "deep-copy-refused" else build()
    refused = {"check_copies": "torch's own"} if name == "deep-copy-refused" else {}
    check_quantizer(source, adapter=adapter, traits=QuantizerTraits(**traits), expected_failures=refused)


def test_what_cannot_be_copied_must_be_built():
    with pytest.raises(TypeError, match=r"cannot be copied.*Pass a function that builds one"):
        check_quantizer(Normalized(), traits=QuantizerTraits(dim=DIM))


def test_two_numbers_are_no_loss():
    class Two(Plain):
        def forward(self, z):
            quantized, indices, loss = super().forward(z)
            return quantized, loss, loss, indices

    with pytest.raises(AssertionError, match="2 single numbers in the answer, 1, 2, may be the loss: pass an adapter"):
        check_training(Two(), traits=QuantizerTraits(**LEARNED))


def test_distances_that_autograd_drops_at_once():
    class Distances(Plain):
        def search(self, vectors, codebook):
            return torch.cdist(vectors.requires_grad_(), codebook).argmin(dim=1)

    check_memory(Distances(1024), traits=QuantizerTraits(dim=DIM, codebook_size=1024))


def test_a_histogram_of_each_process():
    class Logged(Plain):
        def __init__(self):
            super().__init__()
            self.register_buffer("histogram", torch.zeros(SIZE))

        def forward(self, z):
            quantized, indices, loss = super().forward(z)
            self.histogram.lerp_(torch.bincount(indices.flatten(), minlength=SIZE).float(), 0.01)
            return quantized, indices, loss

    check_two_processes(Logged(), traits=QuantizerTraits(**LEARNED))


@pytest.mark.parametrize("seed", range(8))
def test_training_with_as_many_entries_as_clusters(seed):
    torch.manual_seed(seed)
    check_training(Plain(32, 64), traits=QuantizerTraits(dim=64, codebook_size=32, distance="euclidean"))
