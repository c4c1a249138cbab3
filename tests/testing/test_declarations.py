"""What is declared of anybody's quantizer is refused, checked, or named among what was left out."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vq_components import VectorQuantizer, functional
from vq_components.testing import (
    CheckError,
    CheckFailure,
    QuantizerSubject,
    QuantizerTraits,
    check_kmeans_function,
    check_moving_average,
    check_orthogonality_function,
    check_quantizer,
    traits_of,
)


class Averages(nn.Module):
    """Moving averages in two phases, with nothing of this package."""

    def __init__(self, decay):
        super().__init__()
        self.decay = decay
        self.register_buffer("rows", torch.randn(16, 4))
        self.register_buffer("sizes", torch.ones(16))
        self.register_buffer("sums", self.rows.clone())
        self.register_buffer("new_sizes", torch.zeros(16))
        self.register_buffer("new_sums", torch.zeros(16, 4))

    def set_codebook_(self, entries):
        self.rows.copy_(entries)
        self.sums.copy_(entries)
        self.sizes.fill_(1)
        self.new_sizes.zero_()
        self.new_sums.zero_()

    def update_(self):
        self.sizes.lerp_(self.new_sizes, 1 - self.decay)
        self.sums.lerp_(self.new_sums, 1 - self.decay)
        means = self.sums / self.sizes.clamp(min=1e-5)[:, None]
        self.rows.copy_(torch.where((self.new_sizes > 0)[:, None], means, self.rows))
        self.new_sizes.zero_()
        self.new_sums.zero_()

    def forward(self, z):
        flat = z.movedim(1, -1).reshape(-1, 4)
        indices = torch.cdist(flat.detach(), self.rows).argmin(dim=1)
        if self.training:
            self.new_sizes += torch.bincount(indices, minlength=16)
            self.new_sums.index_add_(0, indices, flat.detach())
        quantized = flat + (self.rows[indices] - flat).detach()
        shape = z.movedim(1, -1).shape
        return quantized.view(shape).movedim(-1, 1), indices.view(shape[:-1]), 0.0


DECLARED = QuantizerTraits(dim=4, codebook_size=16, distance="euclidean", two_phase=True, decay=0.9)


def test_averages_of_anybody_are_compared_with_the_declared_decay():
    check_moving_average(Averages(0.9), traits=DECLARED)
    for wrong in (0.5, 0.1):
        with pytest.raises(CheckFailure, match=r"after update 1 with decay=0\.9: "):
            check_moving_average(Averages(wrong), traits=DECLARED)


def test_a_decay_that_cannot_be_checked_is_named():
    with pytest.raises(CheckError) as error:  # it counts each process's own vectors, among others
        check_quantizer(
            Averages(0.9), traits=QuantizerTraits(dim=4, codebook_size=16, decay=0.9, starts_from_data=True)
        )
    needs = "two_phase=, of a quantizer with update_(), and distance='euclidean'"
    assert error.value.left_out["check_moving_average"] == needs
    assert error.value.left_out["check_start_from_data"] == needs
    assert "check_reference" in error.value.left_out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"distance": "euclidian"}, "distance of 'euclidean', 'cosine', None, but got 'euclidian'"),
        ({"estimator": "ste"}, "estimator of 'straight_through', 'other', 'none', but got 'ste'"),
        ({"codebook_size": 0}, "a positive codebook_size, but got 0"),
        ({"dim": -1}, "a positive dim, but got -1"),
        ({"decay": 3.0}, r"a decay in \[0, 1\], but got 3.0"),
        ({"functions": {"k_means": functional.kmeans}}, "functions named .*kmeans, but got 'k_means'"),
        ({"space": 2}, r"a tuple as space, but got 2. Pass \(2,\)."),
        ({"index_shape": 2}, r"a tuple as index_shape, but got 2. Pass \(2,\)."),
        ({"functions": {"kmeans": 3}}, "a function as kmeans, but got 3"),
    ],
)
def test_traits_that_no_quantizer_has_are_refused(wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        QuantizerTraits(**{"dim": 4, **wrong})


def test_a_composite_is_not_advised_to_declare_what_one_codebook_has():
    subject = QuantizerSubject(VectorQuantizer(16, 4), traits=QuantizerTraits(dim=4, codebook_size=16, composite=True))
    assert set(check_quantizer(subject).left_out) & {"check_loss_value", "check_nearest_entry"} == set()


def zeros_for_empty(vectors, num_clusters, *, iterations=10, generator=None):
    centers = vectors[torch.randperm(len(vectors), generator=generator)[:num_clusters]].detach()
    for _ in range(iterations):
        nearest = torch.cdist(vectors.detach(), centers).argmin(dim=1)
        counts = torch.bincount(nearest, minlength=num_clusters)
        centers = torch.zeros_like(centers).index_add_(0, nearest, vectors.detach()) / counts.clamp(min=1)[:, None]
    return centers


def test_functions_of_anybody_are_checked():
    def checked(name, function):
        quantizer = VectorQuantizer(16, 4)
        return QuantizerSubject(quantizer, traits=replace(traits_of(quantizer), functions={name: function}))

    check_kmeans_function(checked("kmeans", functional.kmeans))
    with pytest.raises(CheckFailure, match=r"centers of the vectors 5, 5, 5 and 9 are .*0\.0"):
        check_kmeans_function(checked("kmeans", zeros_for_empty))
    with pytest.raises(CheckFailure, match="entries of 4 channels: "):
        check_orthogonality_function(checked("orthogonality_loss", lambda e: functional.orthogonality_loss(e.T)))


class NoEncode(nn.Module):
    """A look-up that is all there is: no method beside the call."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, 4)

    def forward(self, z):
        flat = z.movedim(1, -1)
        indices = torch.cdist(flat.reshape(-1, 4), self.embedding.weight).argmin(dim=1).view(flat.shape[:-1])
        quantized = self.embedding(indices).movedim(-1, 1)
        loss = (quantized - z.detach()).square().mean() + 0.25 * (quantized.detach() - z).square().mean()
        return z + (quantized - z).detach(), indices, loss


def test_strict_asks_no_quantizer_for_a_method_that_it_does_not_have():
    with pytest.raises(CheckError) as error:  # its distances are computed in half precision under autocast
        check_quantizer(NoEncode(), traits=replace(traits_of(NoEncode()), strict=True))
    assert "AttributeError" not in str(error.value)
    assert "check_encode" in error.value.left_out
