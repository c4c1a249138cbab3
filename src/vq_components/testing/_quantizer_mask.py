"""Checks of a quantizer that takes a mask."""

from functools import partial

import torch

from ._compare import clone, gap, state_difference, state_of
from ._quantizer_subject import QUANTIZER, QuantizerSubject
from ._report import fail, refused, require


def _masks(subject: QuantizerSubject) -> bool:
    return subject.traits.mask


@QUANTIZER.check(
    rule="masked positions get index -1, zeros, and no gradient; a mask is True where a position is live",
    cause="the mask is applied to the loss only, or the other way round",
    applies=_masks,
    needs="mask=True, if it takes a mask",
)
def check_mask_output(subject: QuantizerSubject) -> None:
    """Guards what comes out at positions that do not exist.

    Fails it::

        return codebook[indices], indices, (error * mask).mean()
    """
    for training in (True, False):
        module = subject.started(training=training)
        for rank in subject.traits.space:
            z = subject.to_layout(torch.randn(6, *(4, 6, 2)[:rank], subject.traits.dim)).requires_grad_()
            mask = torch.rand(subject.positions(z)) > 0.4
            nothing = torch.nan if subject.traits.strict else 100.0  # what is not there may be anything
            with torch.no_grad():
                z.movedim(subject.traits.channel_dim, -1)[~mask] = nothing
            if subject.traits.strict:
                call = partial(subject.call, module, z, mask[None])
                require(refused(call, ValueError), f"a mask {tuple(mask[None].shape)} for {tuple(z.shape)} is taken")
            result = subject.call(module, z, mask)
            outside = result.indices[~mask]
            turned = bool((result.indices[mask] == -1).all()) and not bool((outside == -1).any())
            require(not turned, "index -1 where live, and only there: the mask is taken the other way round")
            require(bool((outside == -1).all()), f"indices {sorted(set(outside.flatten().tolist()))[:5]} where masked")
            least = subject.least_index(training=training)
            require(bool((result.indices[mask] >= least).all()), "index -1 where live")
            quantized = result.quantized.movedim(subject.traits.channel_dim, -1)
            require(not bool(quantized[~mask].any()), "the output is not zero where masked")
            if not (result.loss + result.quantized.sum()).requires_grad:
                continue
            (grad,) = torch.autograd.grad(result.loss + result.quantized.sum(), z, allow_unused=True)
            if grad is None:
                fail("no gradient at the input")
                return
            grad = grad.movedim(subject.traits.channel_dim, -1)
            require(not bool(grad[~mask].any()), f"the gradient is not zero where masked, at values that are {nothing}")
            require(bool(grad[mask].isfinite().all()), f"{nothing} where masked reaches the gradient of others")
            require(bool(grad[mask].any()), "the gradient is zero where live")


@QUANTIZER.check(
    rule="encode with a mask gives the forward's indices, -1 where masked",
    cause="a mask that encode takes and forgets",
    applies=lambda subject: (
        subject.traits.strict and subject.traits.mask and callable(getattr(subject.fresh(), "encode", None))
    ),
)
def check_mask_encode(subject: QuantizerSubject) -> None:
    """Guards tokens on disk: what is not there must not look like entry 0.

    Fails it::

        def encode(self, z, mask=None):
            return self.search(z.nan_to_num())
    """
    module = subject.started(training=False)
    for rank in subject.traits.space:
        z = subject.to_layout(torch.randn(6, *(4, 6, 2)[:rank], subject.traits.dim))
        mask = torch.rand(subject.positions(z)) > 0.4
        z.movedim(subject.traits.channel_dim, -1)[~mask] = torch.nan
        text = gap(module.encode(z, mask), subject.call(module, z, mask).indices)
        require(not text, f"input {tuple(z.shape)}: {text} in the indices")


@QUANTIZER.check(
    rule="masked positions influence nothing: all is as if they had been cut out",
    cause="a mean over all positions, or statistics that count masked ones",
    applies=lambda subject: subject.traits.mask and not subject.traits.stochastic,
    needs="mask=True, if it takes a mask",
)
def check_mask_equals_cutting_out(subject: QuantizerSubject) -> None:
    """Guards outputs, loss, terms and statistics, for masked values of any kind, NaN included.

    Fails it::

        loss = ((z - e).square() * mask[:, None]).mean()  # divides by masked positions too
    """
    starts = [subject.started(), subject.fresh(), subject.started(training=False)]
    for start in starts:
        for filling in (0.0, 100.0, torch.nan):
            module, other = clone(start), clone(start)
            vectors = subject.vectors(subject.input(60))
            live = torch.rand(len(vectors)) > 0.4
            filled = torch.where(live[:, None], vectors, filling)
            z = subject.from_vectors(filled)
            result = subject.call(module, z, live.view(-1, *[1] * len(subject.space)))
            expected = subject.call(other, subject.from_vectors(vectors[live]))
            where = f"with {filling} where masked"
            text = gap(subject.flat(result.indices)[live], subject.flat(expected.indices))
            require(not text, f"{where}: {text} in the indices")
            same = subject.about if subject.traits.trains_codebook else subject.differ  # a projection rounds by shape
            text = same(subject.vectors(result.quantized)[live], subject.vectors(expected.quantized))
            require(not text, f"{where}: {text} in quantized")
            text = subject.about(result.loss, expected.loss)
            require(not text, f"{where}: {text} in the loss")
            for name, term in (result.terms or {}).items():
                text = subject.about(term, (expected.terms or {})[name])
                require(not text, f"{where}: {text} in the term {name}")
            subject.update(module)
            subject.update(other)
            text = subject.states_differ(module, other)
            require(not text, f"{where}: after an update, {text}")


@QUANTIZER.check(
    rule="a batch without a live position has a finite loss, gives zeros and changes nothing",
    cause="a division by the number of live positions, or an output that is not masked",
    applies=_masks,
    needs="mask=True, if it takes a mask",
)
def check_mask_of_nothing(subject: QuantizerSubject) -> None:
    """Guards a fully masked batch.

    Fails it::

        loss = (error * mask).sum() / mask.sum()  # 0 / 0
    """
    for training in (True, False):
        module = subject.started(training=training)
        before = state_of(module)
        z = subject.input(12)
        shape = subject.positions(z)
        result = subject.call(module, z, torch.zeros(shape, dtype=torch.bool))
        require(bool(result.loss.isfinite().all()), f"the loss is {result.loss.tolist()}")
        require(not bool(result.quantized.any()), "the output is not zero")
        for name, term in (result.terms or {}).items():
            require(bool(term.isfinite().all()), f"the term {name} is {term.tolist()}")
        subject.update(module)
        text = state_difference(state_of(module), before)
        require(not text, f"the state changed: {text}")
