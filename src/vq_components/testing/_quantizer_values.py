"""Checks of a quantizer: which entry is chosen, and what that depends on."""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ._compare import gap
from ._engine import BASIC, FIRST, missing
from ._quantizer_subject import (
    NEEDS_CODEBOOK,
    QUANTIZER,
    QuantizerSubject,
    has_codebook,
    has_decode,
    has_encode,
    has_setter,
    of_one_codebook,
)
from ._report import refused, require


@QUANTIZER.check(
    rule="decode(indices) is what the forward returned, for the same codebook",
    cause="the codebook is updated in the same forward, after the look-up; or decode uses another order or projection",
    applies=has_decode,
    needs="a method decode, or the adapter's decode=",
    rank=BASIC,
)
def check_decode_inverts_forward(subject: QuantizerSubject) -> None:
    """Guards that tokens stand for what the decoder was trained on, in training and in evaluation.

    Fails it::

        quantized = codebook[indices]
        codebook.lerp_(batch_means, 0.01)  # indices now decode to something else
    """
    for training in subject.modes:
        module = subject.started(training=training)
        for rank in subject.traits.space:
            z = subject.to_layout(torch.randn(4, *(4, 6, 2)[:rank], subject.traits.dim))
            result = subject.call(module, z)
            decoded = subject.decode(module, result.indices, z)
            text = subject.differ(decoded.to(z.dtype), result.quantized)
            require(not text, f"{'training' if training else 'evaluation'}, input {tuple(z.shape)}: {text}")


@QUANTIZER.check(
    rule="decode(encode(z)) is what the forward returns; in training too, unless that is random",
    cause="encode and forward look up in different ways, encode returns another layout, or counts as a forward does",
    applies=has_encode,
    needs=missing(
        (lambda subject: subject.adapter.encode is not None, "a method encode, or the adapter's encode="),
        (has_decode, "a method decode, or the adapter's decode="),
    ),
)
def check_encode(subject: QuantizerSubject) -> None:
    """Guards that tokens written to disk are those of the forward.

    Fails it::

        def encode(self, z):
            return self.search(z)  # without the normalization that forward does first
    """
    for training in subject.modes:
        module, mode = subject.started(training=training), "training" if training else "evaluation"
        for rank in subject.traits.space:
            z = subject.to_layout(torch.randn(4, *(4, 6, 2)[:rank], subject.traits.dim))
            indices = subject.encode(module, z)
            result = subject.call_copy(module, z)
            text = gap(indices, result.indices)
            require(not text, f"{mode}, input {tuple(z.shape)}: {text} in the indices")
            require(not indices.requires_grad, "indices require grad")
            text = subject.differ(subject.decode(module, indices, z).to(z.dtype), result.quantized)
            require(not text, f"{mode}, input {tuple(z.shape)}: {text} in the decoded vectors")


@QUANTIZER.check(
    rule="-1, a masked position, decodes to zeros, and indices outside of the codebook are refused",
    cause="Python's negative indexing: -1 is taken for the last entry",
    applies=lambda subject: subject.traits.strict and has_decode(subject),
)
def check_decode_of_no_index(subject: QuantizerSubject) -> None:
    """Guards decode against indices that stand for nothing.

    Fails it::

        return self.codebook[indices]
    """
    module = subject.started()
    shape = (2, 5, *subject.traits.index_shape)
    indices = torch.zeros(shape, dtype=torch.int64)
    indices[1, 2] = -1
    decoded = module.decode(indices).detach().movedim(subject.traits.channel_dim, -1)
    require(not bool(decoded[1, 2].any()), f"-1 decodes to values up to {float(decoded[1, 2].abs().max()):.3g}")
    live = decoded[0, 0].expand_as(decoded).clone()
    live[1, 2] = 0
    require(not subject.differ(decoded, live), f"next to -1, {subject.differ(decoded, live)}")
    for bad in (-2, subject.traits.codebook_size or 0):
        indices[1, 2] = bad
        taken = f"index {bad} was decoded, with a codebook of {subject.traits.codebook_size}"
        require(refused(partial(module.decode, indices), ValueError, IndexError), taken)


@QUANTIZER.check(
    rule="every output vector is an entry of the codebook, the one that its index names",
    cause="an output that is blended with the input, scaled, or taken from another version of the codebook",
    applies=lambda subject: has_codebook(subject) and not subject.traits.composite and not subject.traits.stochastic,
    needs=of_one_codebook(missing(NEEDS_CODEBOOK)),
)
def check_output_is_an_entry(subject: QuantizerSubject) -> None:
    """Guards the bottleneck itself: nothing but the index passes.

    Fails it::

        quantized = 0.5 * z + 0.5 * entries
    """
    for training in (True, False):
        module = subject.started(training=training)
        z = subject.input(64)
        result = subject.call(module, z)
        entries = subject.codebook(module)[subject.flat(result.indices).long()]
        text = subject.differ(subject.vectors(result.quantized), entries.to(z.dtype))
        if text and subject.traits.distance == "cosine" and not subject.traits.strict:  # a codebook of any norms
            text = subject.differ(subject.vectors(result.quantized), normalize(entries, dim=1).to(z.dtype))
        require(not text, f"{'training' if training else 'evaluation'}: {text}")


@QUANTIZER.check(
    rule="an output that is drawn, and is an entry of the codebook, is the one that its index names",
    cause="the index of the likeliest entry beside an output that was drawn, with noise",
    applies=lambda subject: has_codebook(subject) and subject.traits.stochastic and not subject.traits.composite,
)
def check_index_of_draw(subject: QuantizerSubject) -> None:
    """Guards usage and tokens in a random training; an output that is a mixture of entries is left alone.

    Fails it::

        return F.gumbel_softmax(logits, hard=True) @ codebook, logits.argmax(dim=1)
    """
    module = subject.started(training=True)
    result = subject.call(module, subject.input(200))
    outputs = subject.vectors(result.quantized).detach()
    entries = subject.codebook(module).to(outputs.dtype)
    nearest = entries[torch.cdist(outputs, entries).argmin(dim=1)]
    if not subject.about(outputs, nearest):
        text = subject.about(outputs, entries[subject.flat(result.indices).long()])
        require(not text, f"training, the entries of the indices: {text}")


@QUANTIZER.check(
    rule="each vector gets the nearest entry",
    cause="an expansion of the distance with a wrong factor or sign, or argmax where argmin is meant",
    applies=lambda subject: (
        has_codebook(subject) and subject.traits.distance is not None and not subject.traits.stochastic
    ),
    needs=of_one_codebook(
        missing(
            (lambda subject: subject.traits.distance is not None, "distance=, if the entry is the nearest one"),
            NEEDS_CODEBOOK,
        )
    ),
)
def check_nearest_entry(subject: QuantizerSubject) -> None:
    """Guards the search against a brute force in float64, for codebooks of several scales; of ties, the first wins.

    Fails it::

        distances = e.square().sum(1) - z @ e.T  # the factor 2 is missing
    """
    for training in (True, False):
        module = subject.started(training=training)
        for scale in (1.0, 3.0, 0.1):
            z = subject.input(200) * scale
            before = subject.codebook(module).double().clone()
            indices = subject.flat(subject.call(module, z).indices).long()
            distances = _distances(subject.vectors(z).double(), before, cosine=subject.traits.distance == "cosine")
            chosen, best = distances.gather(1, indices[:, None])[:, 0], distances.amin(dim=1)
            excess = (chosen - best) / best.clamp(min=1e-12)
            far = int((excess > 1e-3).sum())
            require(
                far == 0,
                f"{far} of {len(indices)} vectors got an entry that is up to {float(excess.max()):.3g} farther",
            )


def _distances(z: Tensor, codebook: Tensor, *, cosine: bool) -> Tensor:
    if cosine:
        z, codebook = (torch.nn.functional.normalize(each, dim=1) for each in (z, codebook))
    return torch.cdist(z, codebook).square()


@QUANTIZER.check(
    rule="of equally near entries, the first is taken",
    cause="max() or min() over blocks that are compared with >= instead of >",
    applies=lambda subject: subject.traits.strict and has_setter(subject) and not subject.traits.stochastic,
)
def check_ties(subject: QuantizerSubject) -> None:
    """Guards the choice between equal entries, which otherwise depends on the machine.

    Fails it::

        indices = len(codebook) - 1 - distances.flip(1).argmin(dim=1)
    """
    module = subject.started()
    codebook = subject.codebook(module)
    half = len(codebook) // 2
    doubled = torch.cat([codebook[:half], codebook[:half], codebook[: len(codebook) - 2 * half]])
    module.set_codebook_(doubled)
    for training in (True, False):
        module.train(training)
        for count in (7, 200):
            indices = subject.call(module, subject.input(count)).indices
            require(
                int(indices.max()) < half, f"{int((indices >= half).sum())} vectors got the second of two equal ones"
            )


@QUANTIZER.check(
    rule="the same input gives the same output",
    cause="random numbers, or a state that an evaluation changes; declare stochastic=True if a training is random by "
    "design",
    rank=FIRST,
)
def check_deterministic(subject: QuantizerSubject) -> None:
    """Guards repeated evaluations, under different random states.

    Fails it::

        indices = torch.multinomial(probabilities, 1)  # in evaluation too
    """
    for training in subject.modes:
        module, z = subject.started(training=training), subject.input(64)
        results = [subject.call_copy(module, z, seed=seed) for seed in (1, 1, 2)]
        for other in results[1:]:
            text = subject.results_differ(other, results[0])
            require(not text, f"{'training' if training else 'evaluation'}: {text}")


@QUANTIZER.check(
    rule="what a vector becomes does not depend on the rest of the batch",
    cause="statistics of the batch in the forward, or a codebook that starts or changes before the look-up",
)
def check_batch_independence(subject: QuantizerSubject) -> None:
    """Guards that a token is a function of its own vector, alone or in company.

    Fails it::

        z = z - z.mean(dim=0)
    """
    for training in subject.modes:
        module = subject.started(training=training)
        z = subject.input(20) + 2.0
        together = subject.call_copy(module, z)
        for size in (1, 7):
            parts = [subject.call_copy(module, part) for part in torch.split(z, size)]
            indices = torch.cat([subject.flat(part.indices) for part in parts])
            text = gap(indices, subject.flat(together.indices))
            require(not text, f"in batches of {size}: {text} in the indices")
            # A projection rounds differently in another shape.
            text = subject.about(torch.cat([part.quantized for part in parts]), together.quantized)
            require(not text, f"in batches of {size}: {text} in quantized")


@QUANTIZER.check(
    rule="permuting positions permutes the output",
    cause="a position that leaks into its neighbors: view() across positions, or a position-dependent term",
)
def check_permutation(subject: QuantizerSubject) -> None:
    """Guards that batch items and positions are treated alike.

    Fails it::

        z = z + positional_encoding
    """
    for training in subject.modes:
        module = subject.started(training=training)
        z = subject.to_layout(torch.randn(5, *(6, 4, 2)[: max(subject.traits.space)], subject.traits.dim))
        vectors = subject.vectors(z)
        order = torch.randperm(len(vectors))
        moved = z.movedim(subject.traits.channel_dim, -1)
        shuffled = subject.to_layout(vectors[order].view(moved.shape))
        result, other = subject.call_copy(module, z), subject.call_copy(module, shuffled)
        text = gap(subject.flat(other.indices), subject.flat(result.indices)[order])
        require(not text, f"{text} in the indices")
        text = subject.differ(subject.vectors(other.quantized), subject.vectors(result.quantized)[order])
        require(not text, f"{text} in quantized")
