"""The declarations that the how-to page recommends fit quantizers that are written plainly."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vq_components.testing import QuantizerTraits, check_quantizer

PAGE = Path(__file__).parents[2] / "docs/how-to/test-your-own-quantizer.md"


class Positions(nn.Module):
    """Takes each vector by itself, channels second; ``each`` gives output, indices and loss of vectors ``(N, D)``."""

    dim = 4

    def forward(self, z):
        if z.shape[1] != self.dim:
            raise ValueError(f"{z.shape[1]} channels instead of {self.dim}")
        with torch.autocast("cpu", enabled=False):
            moved = z.float().movedim(1, -1)
            quantized, indices, losses = self.each(moved.reshape(-1, self.dim))
        indices = indices.view(*moved.shape[:-1], *indices.shape[1:])
        loss = losses.sum() / max(losses.numel(), 1)
        return quantized.view(moved.shape).movedim(-1, 1).to(z.dtype), indices, loss


class Nearest(Positions):
    def __init__(self):
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(16, self.dim))

    def search(self, vectors, codebook):
        scores = vectors @ codebook.T - codebook.square().sum(dim=1) / 2
        return scores.detach().nan_to_num(nan=-torch.inf).argmax(dim=1)

    def each(self, vectors):
        indices = self.search(vectors, self.codebook)
        entries = F.embedding(indices, self.codebook)
        losses = (entries - vectors.detach()).square() + 0.25 * (vectors - entries.detach()).square()
        return vectors + (entries - vectors).detach(), indices, losses


class Cosine(Nearest):
    def each(self, vectors):
        codebook, unit = F.normalize(self.codebook, dim=1), F.normalize(vectors, dim=1)
        indices = self.search(unit, codebook)
        entries = F.embedding(indices, codebook)
        losses = (entries - unit.detach()).square() + 0.25 * (unit - entries.detach()).square()
        return unit + (entries - unit).detach(), indices, losses

    def decode(self, indices):
        return F.embedding(indices, F.normalize(self.codebook, dim=1)).movedim(-1, 1)


class Residual(Positions):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([Nearest(), Nearest()])

    def each(self, vectors):
        rest, indices, losses = vectors, [], []
        for stage in self.stages:
            quantized, index, loss = stage.each(rest)
            rest = rest - quantized.detach()
            indices.append(index)
            losses.append(loss)
        total = (vectors - rest).detach()
        return vectors + (total - vectors).detach(), torch.stack(indices, dim=1), torch.stack(losses)


class Scalars(Positions):
    """FSQ of three levels each."""

    def each(self, vectors):
        bounded = vectors.tanh()
        rounded = bounded.nan_to_num().detach().round()
        digits = (rounded + 1).long()
        indices = (digits * 3 ** torch.arange(self.dim)).sum(dim=1)
        return bounded + (rounded - bounded).detach(), indices, vectors.new_zeros(len(vectors))

    def decode(self, indices):
        return (indices[..., None] // 3 ** torch.arange(self.dim) % 3 - 1).float().movedim(-1, 1)


class Gumbel(Positions):
    def __init__(self):
        super().__init__()
        self.scores, self.codebook = nn.Linear(self.dim, 16), nn.Parameter(torch.randn(16, self.dim))

    def each(self, vectors):
        logits = self.scores(vectors.nan_to_num())
        if self.training:
            shares = F.gumbel_softmax(logits, hard=True)
        else:
            shares = F.one_hot(logits.argmax(dim=1), 16).to(logits.dtype)
        divergence = (logits.softmax(dim=1) * (16 * logits.softmax(dim=1) + 1e-10).log()).sum(dim=1)
        return shares @ self.codebook, shares.argmax(dim=1), divergence


BUILT = {
    "the paper's VQ": (Nearest, 16),
    "cosine codes": (Cosine, 16),
    "residual VQ of `Q` stages": (Residual, 16),
    "FSQ, LFQ": (Scalars, 81),
    "Gumbel-softmax": (Gumbel, 16),
}


@pytest.mark.parametrize("kind", BUILT)
def test_recipe(kind):
    (recipe,) = re.findall(rf"(?m)^\| {re.escape(kind)} \| `([^`]*)`", PAGE.read_text(encoding="utf-8"))
    build, size = BUILT[kind]
    torch.manual_seed(0)
    traits = eval(f"dict({recipe})", {"Q": 2})
    check_quantizer(build(), traits=QuantizerTraits(dim=4, codebook_size=size, **traits))
