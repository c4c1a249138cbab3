"""The package's other quantizers and its wrappers, as the kit tests them."""

import math
from dataclasses import replace
from functools import partial

import torch

from vq_components import (
    FSQ,
    LFQ,
    EMAVectorQuantizer,
    GroupedQuantizer,
    GumbelQuantizer,
    IndexBackpropQuantizer,
    ProjectedQuantizer,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
    functional,
)
from vq_components.testing import QuantizerSubject, traits_of


def declared(quantizer, **traits):
    return replace(traits_of(quantizer), **traits)


def through(z, entries):
    return z + (entries - z).detach()


def nearest(z, codebook):
    return (z.detach()[:, None] - codebook.detach()[None]).square().sum(dim=2).argmin(dim=1)


def two_terms(z, entries, commitment, codebook):
    return commitment * (z - entries.detach()).square().mean() + codebook * (z.detach() - entries).square().mean()


def plain_vector(module, z):
    """Of a VectorQuantizer(commitment_weight=0.25, codebook_weight=1)."""
    indices = nearest(z, module.codebook)
    entries = module.codebook[indices]
    return through(z, entries), indices, two_terms(z, entries, 0.25, 1.0)


def plain_cosine(module, z):
    z = torch.nn.functional.normalize(z, dim=1)
    weight = torch.nn.functional.normalize(module.embedding.weight, dim=1)
    indices = nearest(z, weight)
    entries = weight[indices]
    return through(z, entries), indices, two_terms(z, entries, 0.25, 1.0)


def plain_rotate(module, z):
    """Fifty et al. (2024): the rotation that takes z to its entry, and the ratio of lengths, held constant.

    To an entry at the origin there is no rotation: straight through.
    """
    indices = nearest(z, module.codebook)
    entries = module.codebook[indices]
    with torch.no_grad():
        a, b = (torch.nn.functional.normalize(each, dim=1) for each in (z, entries))
        middle = torch.nn.functional.normalize(a + b, dim=1)
        rotation = torch.eye(z.shape[1]) - 2 * middle[:, :, None] * middle[:, None] + 2 * b[:, :, None] * a[:, None]
        scale = entries.norm(dim=1, keepdim=True) / z.norm(dim=1, keepdim=True)
    turned = scale * (rotation @ z[:, :, None])[:, :, 0]
    quantized = torch.where(entries.any(dim=1, keepdim=True), turned, through(z, entries))
    return quantized, indices, two_terms(z, entries, 0.25, 1.0)


def plain_fsq(module, z):
    """Mentzer et al. (2023), for levels 5, 4, 3: the middle of an even number of levels is shifted by a half."""
    half = torch.tensor([2.0, 1.5, 1.0], dtype=z.dtype) * (1 - 1e-3)
    offset = torch.tensor([0.0, 0.5, 0.0], dtype=z.dtype)
    bounded = (z + torch.tan(offset / half)).tanh() * half - offset
    levels = bounded.round()
    digits = levels.long() + torch.tensor([2, 2, 1])
    return through(bounded, levels) / torch.tensor([2, 2, 1]), digits @ torch.tensor([1, 5, 20]), 0 * z.sum()


def plain_lfq(module, z, weights=(0.1, 1.0, 0.25), temperature=0.01):
    """Yu et al. (2023): signs, the entropy of each assignment, and that of their average."""
    signs = torch.where(z > 0, 1.0, -1.0)
    indices = (signs > 0).long() @ 2 ** torch.arange(z.shape[1])
    every = (torch.arange(2 ** z.shape[1])[:, None] >> torch.arange(z.shape[1]) & 1) * 2.0 - 1
    # In float64; log_softmax keeps what is tiny.
    log_q = (-(z.double()[:, None] - every[None]).square().sum(dim=2) / temperature).log_softmax(dim=1)
    sample = -(log_q.exp() * log_q).sum(dim=1).mean()
    batch = torch.special.entr(log_q.exp().mean(dim=0)).sum()
    entropies = weights[0] * (sample - weights[1] * batch)
    return through(z, signs), indices, entropies + weights[2] * (z - signs).square().mean()


def plain_simvq(module, z, weights=(0.25, 1.0)):
    codebook = module.embedding.weight @ module.embedding_proj.weight.T + module.embedding_proj.bias
    indices = nearest(z, codebook)
    entries = codebook[indices]
    return through(z, entries), indices, two_terms(z, entries, *weights)


def plain_index(module, z, weights=(0.25, 1.0, 1.0)):
    """Shi et al. (2024): the one-hot choice with the gradient of the softmax over scores."""
    book = module.embedding.weight
    p = (z @ book.T).softmax(dim=1)
    indices = p.argmax(dim=1)
    chosen = through(p, torch.nn.functional.one_hot(indices, len(book)).to(p.dtype)) @ book
    loss = two_terms(z, book[indices], *weights[:2]) + weights[2] * (z - chosen).square().mean()
    return chosen, indices, loss


def plain_gumbel(module, z):
    logits = z @ module.proj.weight.T + module.proj.bias
    log_p = logits.log_softmax(dim=1)
    indices = logits.argmax(dim=1)
    weights = through((logits / 0.7).softmax(dim=1), torch.nn.functional.one_hot(indices, 16).to(z.dtype))
    kl = (log_p.exp() * (log_p + math.log(16))).sum(dim=1).mean()
    return weights @ module.embed.weight, indices, 5e-4 * kl


def plain_projected(module, z):
    inner = z @ module.project_in.weight.T + module.project_in.bias
    quantized, indices, loss = plain_vector(module.quantizer, inner)
    return quantized @ module.project_out.weight.T + module.project_out.bias, indices, loss


def plain_residual(module, z):
    residual, total, indices, losses = z, 0, [], []
    for stage in module.quantizers:
        quantized, index, loss = plain_vector(stage, residual)
        residual, total = residual - quantized.detach(), total + quantized.detach()
        indices.append(index)
        losses.append(loss)
    return through(z, total), torch.stack(indices, dim=1), sum(losses)


def plain_grouped(module, z):
    parts = [plain_vector(part, piece) for part, piece in zip(module.quantizers, z.split([3, 2], dim=1), strict=True)]
    quantized, indices, losses = zip(*parts, strict=True)
    return torch.cat(quantized, dim=1), torch.stack(indices, dim=1), sum(losses) / 2


def spread(quantizer):
    """Entries are as far apart as vectors are."""
    quantizer.set_codebook_(torch.randn_like(quantizer.codebook))
    return quantizer


def with_origin(quantizer):
    """One of its entries is the origin."""
    quantizer.set_codebook_(torch.randn_like(quantizer.codebook).index_fill(0, torch.tensor(5), 0.0))
    return quantizer


def subjects():
    torch.manual_seed(0)
    euclidean = {"distance": "euclidean", "estimator": "straight_through"}
    built = {
        "cosine": (VectorQuantizer(16, 4, distance="cosine"), {"reference": plain_cosine}),
        "cosine-ema": (EMAVectorQuantizer(16, 4, distance="cosine", decay=0.9), {}),
        "cosine-ema-many": (EMAVectorQuantizer(256, 32, distance="cosine"), {}),  # more entries than a first batch
        "rotate": (
            VectorQuantizer(16, 4, estimator=functional.rotate),
            {"estimator": "other", "reference": plain_rotate},
        ),
        "rotate-origin": (
            with_origin(VectorQuantizer(16, 4, estimator=functional.rotate, init="uniform", revival=None)),
            {"estimator": "other", "reference": plain_rotate},
        ),
        "fsq": (FSQ((5, 4, 3)), {"reference": plain_fsq}),
        "lfq": (LFQ(5), {"batched_loss": False, "reference": plain_lfq}),
        "lfq-weights": (
            LFQ(3, entropy_weight=0.3, diversity_weight=0.5, commitment_weight=2.0, temperature=1.5),
            {"batched_loss": False, "reference": partial(plain_lfq, weights=(0.3, 0.5, 2.0), temperature=1.5)},
        ),
        "simvq": (
            SimVQ(16, 4),
            # Entries of variance 1 / D times a linear layer as torch starts it, whose weights have 1 / (3 D).
            {**euclidean, "learns": True, "reference": plain_simvq, "initial_spread": 12**-0.5},
        ),
        "simvq-weights": (
            SimVQ(16, 4, commitment_weight=0.5, codebook_weight=2.0),
            {**euclidean, "learns": True, "reference": partial(plain_simvq, weights=(0.5, 2.0))},
        ),
        "index": (
            IndexBackpropQuantizer(16, 4),
            {"reference": plain_index, "initial_spread": 1 / 16 / 3**0.5},
        ),
        "index-weights": (
            spread(IndexBackpropQuantizer(16, 4, commitment_weight=0.5, codebook_weight=2.0, index_weight=3.0)),
            {"reference": partial(plain_index, weights=(0.5, 2.0, 3.0))},
        ),
        # More entries than one tile of the scores.
        "index-large": (spread(IndexBackpropQuantizer(9000, 4)), {"reference": plain_index}),
        "gumbel": (
            GumbelQuantizer(16, 4, in_channels=6, temperature=0.7),
            {"stochastic": True, "reference": plain_gumbel, "initial_spread": 1.0},
        ),
        "gumbel-soft": (GumbelQuantizer(16, 4, in_channels=6, straight_through=False), {"stochastic": True}),
        "projected": (ProjectedQuantizer(VectorQuantizer(16, 4), dim=6), {"reference": plain_projected}),
        "projected-residual": (
            ProjectedQuantizer(ResidualQuantizer([EMAVectorQuantizer(16, 4) for _ in range(2)]), dim=6),
            {},
        ),
        "projected-lfq": (ProjectedQuantizer(LFQ(5), dim=6), {}),
        "residual": (ResidualQuantizer([VectorQuantizer(16, 4) for _ in range(3)]), {"reference": plain_residual}),
        "residual-ema": (
            ResidualQuantizer([EMAVectorQuantizer(16, 4, decay=0.9) for _ in range(2)], channel_dim=-1),
            {},
        ),
        "residual-nested": (
            ResidualQuantizer([ResidualQuantizer([VectorQuantizer(16, 4) for _ in range(2)]) for _ in range(2)]),
            {},
        ),
        "residual-dropout": (
            ResidualQuantizer([VectorQuantizer(16, 4, init="uniform") for _ in range(3)], dropout=0.5),
            {"stochastic": True},
        ),
        "grouped": (GroupedQuantizer([VectorQuantizer(16, 3), VectorQuantizer(16, 2)]), {"reference": plain_grouped}),
    }
    return [
        QuantizerSubject(each, name=name, traits=declared(each, **traits)) for name, (each, traits) in built.items()
    ]
