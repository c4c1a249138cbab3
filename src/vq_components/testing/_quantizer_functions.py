"""Checks of functions that go with a codebook: search, entropies, orthogonality, and clusters to start from."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ._compare import differ, drawn
from ._quantizer_subject import QUANTIZER, QuantizerSubject
from ._report import require


def _has(name: str) -> Callable[[QuantizerSubject], bool]:
    return lambda subject: name in (subject.traits.functions or {})


def _of(subject: QuantizerSubject, name: str) -> Any:
    return (subject.traits.functions or {})[name]


def _require_same(found: Tensor, wanted: Tensor, leaves: dict[str, Tensor], where: str) -> None:
    """Values and gradients, the one computed in float32, the other one in float64."""
    require(found.shape == (), f"{where}: shape {tuple(found.shape)}")
    text = differ(found.double(), wanted, rtol=1e-4, atol=1e-5)
    require(not text, f"{where}: {float(found.detach()):.6g} instead of {float(wanted.detach()):.6g}")
    for name, leaf in leaves.items():
        (grad,) = torch.autograd.grad(found, leaf, retain_graph=True)
        (exact,) = torch.autograd.grad(wanted, leaf, retain_graph=True)
        text = differ(grad, exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()) + 1e-9)
        require(not text, f"{where}, gradient at the {name}: {text}")


@QUANTIZER.check(
    rule="the entropies of soft assignments are those of softmax(-|z - e|^2 / temperature), in nats, of live vectors",
    cause="a cross term without its factor 2, a mean over masked vectors as well, or a mean of logits",
    applies=_has("code_entropies"),
)
def check_code_entropies_function(subject: QuantizerSubject) -> None:
    """Guards both entropies and their gradients by the N x K matrix in float64.

    Fails it::

        q = (z @ codebook.T / temperature).softmax(dim=1)  # lengths of entries are left out
    """
    function = _of(subject, "code_entropies")
    for count, size, temperature, share in ((60, 9, 1.0, 1.0), (60, 9, 0.1, 0.5), (2000, 700, 3.0, 0.5), (7, 5, 1, 0)):
        z, codebook = torch.randn(count, 6, requires_grad=True), (2 * torch.randn(size, 6)).requires_grad_()
        live = torch.rand(count) < share
        log_q = (-torch.cdist(z.double(), codebook.double()).square() / temperature).log_softmax(dim=1)[live]
        wanted = (
            -(log_q.exp() * log_q).sum() / live.sum().clamp(min=1),
            torch.special.entr(log_q.exp().sum(dim=0) / live.sum().clamp(min=1)).sum(),
        )
        hidden = torch.where(live[:, None], z, torch.nan)
        found = function(hidden, codebook, temperature=temperature, mask=None if share == 1 else live)
        leaves = {"vectors": z, "codebook": codebook} if share > 0 else {}
        for name, value, exact in zip(("mean of the entropies", "entropy of the mean"), found, wanted, strict=True):
            where = f"{name}, {int(live.sum())} of {count} vectors, {size} entries, temperature {temperature}"
            _require_same(value, exact, leaves, where)


@QUANTIZER.check(
    rule="the index is that of the nearest entry, the first of equally near ones, and of an entry for every vector",
    cause="distances that are rounded where entries are far off, ties that go to the last one, or an index of what a "
    "tile is filled up with",
    applies=_has("nearest_code"),
)
def check_nearest_code_function(subject: QuantizerSubject) -> None:
    """Guards the search by differences in float64: also far off, over many entries, with ties, and at NaN and infinity.

    Fails it::

        index = (2 * z @ codebook.T - codebook.square().sum(dim=1)).argmax(dim=1)  # NaN counts as the largest
    """
    function = _of(subject, "nearest_code")
    for size, offset in ((1, 0.0), (7, 0.0), (300, 1000.0), (5000, 0.0)):
        where = f"{size} entries around {offset:g}"
        codebook = torch.randn(size, 6).repeat(2, 1) + offset
        z = torch.randn(50, 6) + offset
        distances = (z.double()[:, None] - codebook.double()).square().sum(dim=2)
        best, found = distances.amin(dim=1), function(z, codebook)
        require(found.dtype == torch.int64 and found.shape == (50,), f"indices are {found.dtype} {tuple(found.shape)}")
        require(bool((found >= 0).all() and (found < 2 * size).all()), f"{where}: an index of no entry")
        behind = (distances.gather(1, found[:, None])[:, 0] - best).max()
        require(float(behind) < 1e-3, f"{where}: an entry is taken that is {float(behind):.3g} further, squared")
        require(bool((found < size).all()), f"{where}, each twice: the second one of two is taken")
        z[:3, 2] = torch.tensor([torch.nan, torch.inf, -torch.inf])
        bad = function(z, codebook)
        require(bool((bad >= 0).all() and (bad < 2 * size).all()), f"{where}: an index of no entry, of NaN or infinity")
        require(torch.equal(bad[3:], found[3:]), f"{where}: NaN in a vector changes the indices of others")
        if size > 1:
            codebook[found[3]] = torch.nan
            require(int(function(z, codebook)[3]) != int(found[3]), f"{where}: an entry that is NaN is the nearest")


@QUANTIZER.check(
    rule="orthogonality of a codebook is |E E^T - I|^2 / K^2 for entries at length 1",
    cause="columns at length 1 in place of rows, or a diagonal that counts",
    applies=_has("orthogonality_loss"),
)
def check_orthogonality_function(subject: QuantizerSubject) -> None:
    """Guards the term and its gradient by the K x K matrix in float64, and that orthogonal entries give 0.

    Fails it::

        unit = F.normalize(codebook, dim=0)  # must be dim=1
    """
    function = _of(subject, "orthogonality_loss")
    for size, dim in ((9, 4), (4, 9), (300, 8)):
        codebook = (3 * torch.rand(size, dim)).requires_grad_()
        unit = torch.nn.functional.normalize(codebook.double(), dim=1)
        wanted = (unit @ unit.T - torch.eye(size)).square().sum() / size**2
        _require_same(function(codebook), wanted, {"codebook": codebook}, f"{size} entries of {dim} channels")
    apart = float(function(3 * torch.eye(5)))
    require(abs(apart) < 1e-6, f"orthogonal entries give {apart:.3g}")


@QUANTIZER.check(
    rule="k-means starts from different vectors, which the generator draws, and moves each center to the mean of its "
    "vectors; where strict, one without a vector to the farthest vector",
    cause="a draw with repetitions, a generator that is not handed on, or centers without a vector that become 0",
    applies=_has("kmeans"),
)
def check_kmeans_function(subject: QuantizerSubject) -> None:
    """Guards a start from clusters: the draw, a move, and that moves do not make it worse.

    Fails it::

        drawn = torch.randint(len(vectors), (num_clusters,))  # of the global generator, with repetitions
    """
    function = _of(subject, "kmeans")
    vectors, size = torch.randn(200, 5).requires_grad_(), 60

    def centers(iterations: int, seed: int = 1) -> Tensor:
        found: Tensor = function(vectors, size, iterations=iterations, generator=torch.Generator().manual_seed(seed))
        require(found.shape == (size, 5) and not found.requires_grad, f"shape {tuple(found.shape)}, or a graph")
        return found

    with drawn(1):
        start = centers(0)
    with drawn(2):
        again = centers(0)
    require(torch.equal(start, again), "generators of one state draw different vectors")
    require(not torch.equal(start, centers(0, seed=2)), "generators of two states draw the same vectors")
    places = torch.cdist(start.double(), vectors.detach().double())
    require(float(places.amin(dim=1).max()) < 1e-6, "it does not start from vectors")
    require(len(set(places.argmin(dim=1).tolist())) == size, "it starts from one vector twice")
    errors = []
    path = [centers(moves).double() for moves in range(7)]
    for moves, (now, after) in enumerate(pairwise(path)):
        nearest = torch.cdist(vectors.detach().double(), now).argmin(dim=1)
        errors.append(float((vectors.detach() - now[nearest]).square().sum()))
        for center in sorted(set(nearest.tolist())):
            mean = vectors.detach()[nearest == center].double().mean(dim=0)
            off = float((after[center] - mean).norm())
            require(off < 1e-4, f"move {moves + 1}: a center is {off:.3g} away from the mean of its vectors")
    require(errors == sorted(errors, reverse=True), f"the error rises with the moves: {errors}")
    few = function(torch.tensor([[5.0], [5.0], [5.0], [9.0]]), 3, iterations=5).flatten().tolist()
    require(set(few) <= {5.0, 9.0}, f"centers of the vectors 5, 5, 5 and 9 are {few}")
    if subject.traits.strict:
        lone = torch.cat([torch.zeros(300, 1), torch.tensor([[7.0], [9.0]])])  # of which the draw has none
        reached = function(lone, 3, iterations=1, generator=torch.Generator().manual_seed(1)).flatten().tolist()
        require({7.0, 9.0} <= set(reached), f"centers without a vector did not go to the farthest, 7 and 9: {reached}")
