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


class Rotated(Nearest):
    """The gradient turned and scaled as the entry is from the vector, which count as constants."""

    def each(self, vectors):
        _, indices, losses = super().each(vectors)
        entries, plain = F.embedding(indices, self.codebook).detach(), vectors.detach()
        a, b = F.normalize(plain, dim=1), F.normalize(entries, dim=1)
        w = F.normalize(a + b, dim=1)
        turned = vectors - 2 * (vectors * w).sum(dim=1, keepdim=True) * w
        turned = turned + 2 * (vectors * a).sum(dim=1, keepdim=True) * b
        moved = turned * entries.norm(dim=1, keepdim=True) / plain.norm(dim=1, keepdim=True).clamp(min=1e-6)
        return entries + (moved - moved.detach()), indices, losses


class Linear(Nearest):
    """SimVQ: fixed entries behind a linear layer that is trained."""

    def __init__(self):
        super().__init__()
        self.fixed = self._parameters.pop("codebook").requires_grad_(False)
        self.map = nn.Linear(self.dim, self.dim, bias=False)

    @property
    def codebook(self):
        return self.map(self.fixed)


class AllEntries(Nearest):
    """IBQ: the one-hot choice with the gradient of the softmax over scores."""

    def each(self, vectors):
        shares = (vectors.nan_to_num() @ self.codebook.T).softmax(dim=1)
        indices = shares.argmax(dim=1)
        chosen = (F.one_hot(indices, 16) + (shares - shares.detach())) @ self.codebook
        return chosen, indices, (chosen - vectors).square() + (chosen.detach() - vectors).square()


class Groups(Positions):
    def __init__(self):
        super().__init__()
        self.groups = nn.ModuleList([Nearest(), Nearest()])
        for group in self.groups:
            group.codebook = nn.Parameter(torch.randn(16, 2))

    def each(self, vectors):
        parts = [group.each(part) for group, part in zip(self.groups, vectors.chunk(2, dim=1), strict=True)]
        outputs, indices, losses = zip(*parts, strict=True)
        return torch.cat(outputs, dim=1), torch.stack(indices, dim=1), torch.stack(losses)


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
    "the same with the rotation trick": (Rotated, 16),
    "SimVQ": (Linear, 16),
    "IBQ, whose gradient reaches all entries": (AllEntries, 16),
    "groups of channels, `G` of them": (Groups, 16),
    "cosine codes": (Cosine, 16),
    "residual VQ of `Q` stages": (Residual, 16),
    "FSQ, LFQ, BSQ": (Scalars, 81),
    "Gumbel-softmax": (Gumbel, 16),
}


@pytest.mark.parametrize("kind", BUILT)
def test_recipe(kind):
    (recipe,) = re.findall(rf"(?m)^\| {re.escape(kind)} \| `([^`]*)`", PAGE.read_text(encoding="utf-8"))
    build, size = BUILT[kind]
    torch.manual_seed(0)
    traits = eval(f"dict({recipe})", {"Q": 2, "G": 2})
    check_quantizer(build(), traits=QuantizerTraits(dim=4, codebook_size=size, **traits))
