"""Checks seen red: small quantizers, each with one thing wrong, and the checks that say so."""

import copy
import functools
import inspect

import pytest
import torch
from torch import nn

from vq_components import testing
from vq_components.testing import CheckFailure, QuantizerSubject, QuantizerTraits, checks_of


class Good(nn.Module):
    """A plain quantizer, right in everything that is checked."""

    def __init__(self):
        super().__init__()
        self.dim, self.codebook_size = 4, 16
        generator = torch.Generator().manual_seed(0)
        self.codebook = nn.Parameter(torch.randn(16, 4, generator=generator))
        self.register_buffer("counter", torch.zeros(()))

    def vectors(self, z):
        return z.float().movedim(1, -1).reshape(-1, self.dim)

    def search(self, flat):
        score = flat.detach() @ self.codebook.detach().T - self.codebook.detach().square().sum(dim=1) / 2
        return score.nan_to_num(nan=-torch.inf).argmax(dim=1)

    def loss(self, flat, entries):
        count = max(flat.numel(), 1)
        return ((entries - flat.detach()).square().sum() + 0.25 * (flat - entries.detach()).square().sum()) / count

    def estimate(self, flat, entries):
        return flat + (entries - flat).detach()

    def forward(self, z):
        if z.shape[1] != self.dim:
            raise ValueError("wrong number of channels")
        with torch.autocast("cpu", enabled=False):
            flat = self.vectors(z)
            indices = self.search(flat)
            entries = self.codebook[indices]
            moved = z.movedim(1, -1).shape
            quantized = self.estimate(flat, entries).view(moved).movedim(-1, 1).to(z.dtype)
        return quantized, indices.view(moved[:-1]), self.loss(flat, entries)

    def decode(self, indices):
        return self.codebook[indices].movedim(-1, 1)


def broken(**methods):
    return type("Broken", (Good,), methods)()


def forward_then(change):
    """A forward that does something to its result or to the module."""

    def forward(self, z):
        return change(self, z, Good.forward(self, z))

    return forward


def averages(self, z, result):
    if self.training:
        with torch.no_grad():
            self.codebook.data = self.codebook.data.lerp(self.vectors(z).mean(dim=0).expand(16, 4), 0.1)
    return result


def count(self, z, result):
    self.counter += 1
    return result


def write(self, z, result):
    z.detach().mul_(2)
    return result


def search_what_is_kept(quantizer, flat):
    if not hasattr(quantizer, "kept"):
        quantizer.kept = quantizer.codebook.detach().clone()
    return torch.cdist(flat.detach(), quantizer.kept).nan_to_num(torch.inf).argmin(dim=1)


CASES = {
    "check_shapes": broken(forward=forward_then(lambda self, z, r: (r[0], r[1].flatten(), r[2]))),
    "check_index_range": broken(forward=forward_then(lambda self, z, r: (r[0], r[1] + 1, r[2]))),
    "check_layouts": broken(vectors=lambda self, z: z.float().reshape(-1, self.dim)),
    "check_strides": broken(vectors=lambda self, z: z.contiguous().float().movedim(1, -1).reshape(-1, 4)
                            if z.is_contiguous() else z.float().flip(0).movedim(1, -1).reshape(-1, 4)),
    "check_wrong_channels": broken(forward=lambda self, z: Good.forward(self, z[:, :4] if z.shape[1] > 4 else z)),
    "check_empty_batch": broken(loss=lambda self, flat, entries: (flat - entries).square().mean()),
    "check_input_untouched": broken(forward=forward_then(write)),
    "check_loss_is_a_mean": broken(loss=lambda self, flat, entries: (flat - entries).square().sum()),
    "check_decode_inverts_forward": broken(decode=lambda self, indices: self.codebook[indices].movedim(-1, 1) * 1.01),
    "check_indices_tell_outputs": broken(forward=forward_then(lambda self, z, r: (r[0], r[1] // 2, r[2]))),
    "check_output_is_an_entry": broken(estimate=lambda self, flat, entries: 0.5 * (flat + entries)),
    "check_nearest_entry": broken(search=lambda self, flat: (flat.detach() @ self.codebook.detach().T).argmax(dim=1)),
    "check_deterministic": broken(search=lambda self, flat: torch.randint(16, (len(flat),))),
    "check_batch_independence": broken(vectors=lambda self, z: Good.vectors(self, z - z.mean(dim=0))),
    "check_permutation": broken(vectors=lambda self, z: Good.vectors(self, z.cumsum(dim=0))),
    "check_not_finite": broken(search=lambda self, flat: Good.search(self, flat + 0 * flat.sum())),
    "check_input_gradient": broken(estimate=lambda self, flat, entries: entries),
    "check_output_moves_no_codebook": broken(estimate=lambda self, flat, entries: flat + entries - flat.detach()),
    "check_loss_value": broken(loss=lambda self, flat, entries: (flat - entries).square().mean()),
    "check_loss_gradients": broken(loss=lambda self, flat, entries: 0.25 * (entries - flat.detach()).square().mean()
                                   + (flat - entries.detach()).square().mean()),
    "check_every_parameter_is_trained": broken(loss=lambda self, flat, e: (flat - e.detach()).square().mean()),
    "check_eval_changes_nothing": broken(forward=forward_then(count)),
    "check_loading_after_use": broken(search=lambda self, flat: search_what_is_kept(self, flat)),
    "check_freeze": broken(forward=forward_then(averages), freeze=lambda self: self.codebook.requires_grad_(False),
                           unfreeze=lambda self: self.codebook.requires_grad_(True)),
    "check_checkpointing": broken(forward=lambda self, z: Good.forward(self, count(self, z, z))),
    "check_micro_batches": broken(forward=forward_then(averages)),
    "check_two_processes": broken(forward=forward_then(averages)),
    "check_compile": broken(forward=forward_then(lambda self, z, r: r if bool(r[1].sum() >= 0) else None)),
    "check_export": broken(forward=forward_then(lambda self, z, r: r if bool(r[1].sum() >= 0) else None)),
    "check_training": broken(loss=lambda self, flat, entries: -0.1 * Good.loss(self, flat, entries)),
}  # fmt: skip
TRAITS = QuantizerTraits(
    dim=4,
    codebook_size=16,
    space=(0, 1, 2),
    distance="euclidean",
    commitment_weight=0.25,
    codebook_weight=1.0,
)


def test_a_good_one_raises_no_alarm():
    testing.check_quantizer(Good(), traits=TRAITS)


@pytest.mark.parametrize("name", CASES)
def test_each_check_finds_what_it_guards(name):
    with pytest.raises(CheckFailure) as failure:
        getattr(testing, name)(CASES[name], traits=TRAITS)
    assert failure.value.check == name
    for part in (failure.value.rule, failure.value.measured, failure.value.cause):
        assert part
        assert part in str(failure.value)


def test_autocast_and_half_precision_are_seen():
    class Half(Good):
        def __init__(self):
            super().__init__()
            self.codebook.data = 1 + 0.05 * self.codebook.data  # close together: half types have few digits

        def forward(self, z):
            flat = z.movedim(1, -1).reshape(-1, 4)
            score = flat @ self.codebook.to(z.dtype).T - self.codebook.to(z.dtype).square().sum(dim=1) / 2
            indices = score.argmax(dim=1)
            moved = z.movedim(1, -1).shape
            return self.codebook[indices].view(moved).movedim(-1, 1).to(z.dtype), indices.view(moved[:-1]), score.sum()

    for check in (testing.check_autocast, testing.check_half_precision):
        with pytest.raises(CheckFailure, match="in the indices"):
            check(Half(), traits=TRAITS)


def test_state_that_is_no_buffer_is_seen():
    class Counting(Good):
        steps = 0

        def forward(self, z):
            quantized, indices, loss = Good.forward(self, z)
            self.steps += self.training
            return quantized, indices, loss * (1 + self.steps)

    with pytest.raises(CheckFailure, match="loss"):
        testing.check_state_dict(Counting(), traits=TRAITS)


def test_a_copy_that_uses_the_original_is_seen():
    quantizer = Good()
    shared = quantizer.codebook.detach()
    quantizer.search = functools.partial(lambda book, flat: torch.cdist(flat, book).argmin(dim=1), shared)
    quantizer.__deepcopy__ = lambda memo: quantizer
    with pytest.raises(CheckFailure):
        testing.check_copies(lambda: quantizer, traits=TRAITS)


def test_an_index_that_is_not_that_of_the_draw_is_seen():
    class Drawn(Good):
        honest = False

        def forward(self, z):
            logits = self.vectors(z) @ self.codebook.T
            drawn = torch.nn.functional.gumbel_softmax(logits, hard=True) if self.training else logits.softmax(dim=1)
            indices = (drawn if self.honest or not self.training else logits).argmax(dim=1)
            quantized = (drawn @ self.codebook if self.training else self.codebook[indices]).view(
                len(z), *z.shape[2:], 4
            )
            return quantized.movedim(-1, 1), indices.view(len(z), *z.shape[2:]), z.new_zeros(())

    traits = QuantizerTraits(dim=4, codebook_size=16, stochastic=True, estimator="other", trains_codebook=True)
    quantizer = Drawn()
    with pytest.raises(CheckFailure, match="training, the entries of the indices: "):
        testing.check_index_of_draw(quantizer, traits=traits)
    quantizer.honest = True
    testing.check_index_of_draw(quantizer, traits=traits)


def test_a_channel_without_a_gradient_is_seen():
    quantizer = broken(
        estimate=lambda self, flat, entries: entries.detach() + (flat - flat.detach()) * (flat != flat[:, :1])
    )
    with pytest.raises(CheckFailure, match=r"channels \[0\] of the input get no gradient from any of 64 vectors"):
        testing.check_input_gradient(quantizer, traits=QuantizerTraits(dim=4, codebook_size=16, estimator="other"))


def test_a_generator_of_its_own_is_no_state():
    class Noisy(Good):
        def __init__(self):
            super().__init__()
            self.generator = torch.Generator().manual_seed(3)

        def vectors(self, z):
            flat = super().vectors(z)
            return flat + 0.5 * torch.randn(flat.shape, generator=self.generator) if self.training else flat

    traits = QuantizerTraits(dim=4, codebook_size=16, stochastic=True)
    testing.check_state_dict(Noisy(), traits=traits)
    testing.check_loading_after_use(Noisy(), traits=traits)


def test_every_check_says_what_it_guards_and_shows_what_fails_it():
    checks = [getattr(testing, name) for name in dir(testing) if name.startswith("check_")]
    whole = {"check_quantizer", "check_loss", "check_prior", "check_tokenizer"}
    single = [check for check in checks if check.__name__ not in whole]
    assert len(single) > 90
    for check in single:
        text = inspect.getdoc(check)
        assert text.startswith("Guards"), check.__name__
        assert "Fails it::" in text, check.__name__


def test_the_object_stays_as_it_is():
    quantizer = Good()
    before, random = copy.deepcopy(quantizer.state_dict()), torch.get_rng_state()
    for check in list(checks_of(QuantizerSubject(quantizer, traits=TRAITS)).values())[:8]:
        check(quantizer, traits=TRAITS)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items())
    assert quantizer.codebook.grad is None
