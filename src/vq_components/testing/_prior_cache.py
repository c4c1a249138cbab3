"""Checks of what a transformer keeps of sequences that grow, and of samplers that have a way of their own for it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._prior_subject import PRIOR, PriorSubject, can_generate, inner
from ._report import refused, require


def _has_cache(subject: PriorSubject) -> bool:
    return all(hasattr(subject.transformer, name) for name in ("features", "new_cache", "block_size", "n_unmasked"))


def _pieces(length: int, unmasked: int) -> list[list[int]]:
    """Ways to cut a length: at once, one by one, in twos and threes, and a long start; the first piece is unmasked."""
    first = max(unmasked, 1)
    rest = length - first
    cuts = [[length], [first] + rest * [1], [first, *(rest // 2) * [2], rest % 2]]
    cuts += [[first, *(rest // 3) * [3], rest % 3], [length - rest // 2, *(rest // 2) * [1]]]
    return [[size for size in cut if size > 0] for cut in cuts]


def _read_in_pieces(gpt: Any, tokens: Tensor, front: Tensor | None, cut: list[int], cache: Any) -> Tensor:
    """Features of all positions, piece by piece; the embeddings come with the first piece."""
    parts, start = [], 0
    for number, size in enumerate(cut):
        given = front if number == 0 else None
        taken = size - (0 if given is None else given.shape[1])
        parts.append(gpt.features(tokens[:, start : start + taken], embeddings=given, cache=cache))
        start += taken
    return torch.cat(parts, dim=1).detach()


@PRIOR.check(
    rule="reading a sequence piece by piece with a cache gives what reading it at once gives",
    cause="positions or a mask that count from the piece's start, or a cache that is one position short",
    applies=_has_cache,
)
def check_cache_in_pieces(prior: PriorSubject) -> None:
    """Guards the cache for few and many sequences, pieces of one and more, with embeddings, full, and used again.

    Fails it::

        query = torch.arange(new)  # must be torch.arange(past, past + new)
    """
    gpt = inner(prior.excited())
    unmasked = gpt.n_unmasked
    length = min(gpt.block_size, unmasked + 8)
    for batch in (1, 3, 17, 33):
        cache = gpt.new_cache(batch, length)
        for ahead in (0, 2) if length > 2 else (0,):
            tokens = torch.randint(gpt.vocab_size, (batch, length - ahead))
            front = torch.randn(batch, ahead, gpt.pos_emb.shape[2]) if ahead else None
            whole = gpt.features(tokens, embeddings=front).detach()
            cuts = _pieces(length, max(unmasked, ahead))
            for cut in cuts if batch == 3 else cuts[2:3]:
                cache.clear()
                found = _read_in_pieces(gpt, tokens, front, cut, cache)
                text = prior.differ(found, whole)
                require(not text, f"{batch} sequences, {ahead} embeddings, pieces of {cut}: {text}")
                require(cache.length == length, f"the cache says that it holds {cache.length} of {length} positions")
        _compare_later_embeddings(prior, gpt, tokens[:, : length - 2])
        again = partial(gpt.features, tokens[:, :1], cache=cache)
        require(refused(again, ValueError), f"a cache of {cache.capacity} positions takes one more")
        require(cache.length == length, f"after a call that was refused, the cache holds {cache.length} positions")


def _compare_later_embeddings(prior: PriorSubject, gpt: Any, tokens: Tensor) -> None:
    """Embeddings that follow positions in the cache, compared with all but the last token as embeddings."""
    start = tokens.shape[1] - 1
    if start < max(gpt.n_unmasked, 1):
        return
    cache, front = gpt.new_cache(len(tokens)), torch.randn(len(tokens), 1, gpt.pos_emb.shape[2])
    gpt.features(tokens[:, :start], cache=cache)
    found = gpt.features(tokens[:, start:], embeddings=front, cache=cache)
    known = torch.cat([gpt.tok_emb(tokens[:, :start]), front], dim=1)
    text = prior.differ(found, gpt.features(tokens[:, start:], embeddings=known)[:, start:])
    require(not text, f"{len(tokens)} sequences, an embedding after {start} tokens in the cache: {text}")


@PRIOR.check(
    rule="a cache holds as many positions as it was made for, and never a part of those that see each other",
    cause="a length that is not handed on, or a limit that is compared with the block instead",
    applies=lambda subject: subject.traits.strict and _has_cache(subject),
)
def check_cache_limits(prior: PriorSubject) -> None:
    """Guards the edges of a cache: exactly full, one too many, and first positions that come apart.

    Fails it::

        return KeyValueCache.empty(layers, batch, heads, self.block_size, width)
    """
    gpt = inner(prior.excited())
    unmasked = gpt.n_unmasked
    require(gpt.new_cache(2).capacity == gpt.block_size, "a cache made without a length does not hold a block")
    for length in {max(unmasked, 1), max(gpt.block_size - 1, unmasked, 1)}:
        cache, tokens = gpt.new_cache(2, length), torch.randint(gpt.vocab_size, (2, length + 1))
        require(cache.capacity == length, f"a cache made for {length} positions holds {cache.capacity}")
        if length < gpt.block_size:
            too_many = partial(gpt.features, tokens, cache=cache)
            require(refused(too_many, ValueError), f"a cache of {length} positions takes {length + 1}")
        text = prior.differ(gpt.features(tokens[:, :length], cache=cache), gpt.features(tokens[:, :length]))
        require(not text, f"a cache of {length} positions, filled at once: {text}")
    if unmasked > 1:
        cache, tokens = gpt.new_cache(2), torch.randint(gpt.vocab_size, (2, gpt.block_size))
        gpt.features(tokens[:, : unmasked - 1], cache=cache)
        more = partial(gpt.features, tokens[:, unmasked - 1 : unmasked], cache=cache)
        require(refused(more, ValueError), f"{unmasked} positions that see each other are taken in two calls")
    for dtype in (torch.float64, torch.bfloat16):
        kept = gpt.to(dtype).new_cache(2)
        tokens = torch.randint(gpt.vocab_size, (2, gpt.block_size))
        found = [gpt.features(part, cache=kept) for part in (tokens[:, :-1], tokens[:, -1:]) if part.shape[1] > 0]
        require(all(each.dtype == dtype for each in found), f"features of {dtype} are {found[-1].dtype} with a cache")


def greedy_gap(prior: PriorSubject, module: Any, prompt: Tensor, new: int, **settings: Any) -> float:
    """How far greedy tokens are behind the likeliest ones, at most, by logits without a cache."""
    values = prior.values(len(prompt))
    front = settings.get("embeddings")
    tokens = prior.generate(module, prompt, new, values, temperature=0.0, **settings)
    first, behind = prompt.shape[1], 0.0
    require(tuple(tokens.shape) == (len(prompt), first + new), f"samples have shape {tuple(tokens.shape)}")
    require(torch.equal(tokens[:, :first], prompt), "the prompt was changed")
    for t in range(first, first + new):
        if front is None:
            logits = prior.next_logits(module, tokens[:, :t], values).detach().double()
        else:
            logits = module(tokens[:, :t], embeddings=front)[:, -1].detach().double()
        chosen = logits.gather(1, tokens[:, t : t + 1])[:, 0]
        behind = max(behind, float(((logits.amax(dim=1) - chosen) / logits.abs().amax(dim=1).clamp(min=1e-3)).max()))
    return behind


@PRIOR.check(
    rule="sampling goes on with embeddings and a prompt as with any other first positions",
    cause="embeddings that are not counted among the positions, or read again with every token",
    applies=lambda subject: can_generate(subject) and "embeddings" in subject.adapter.settings,
)
def check_sampling_after_embeddings(prior: PriorSubject) -> None:
    """Guards continuous conditions, for several numbers of embeddings, prompts and sequences.

    Fails it::

        new = sequence[:, cache.length :]  # must be cache.length - embeddings.shape[1]
    """
    module = prior.excited()
    width = inner(module).pos_emb.shape[2]
    for ahead, length in ((1, 0), (2, 0), (5, 0), (0, 1), (1, 1), (2, 1), (4, 1), (2, 3)):
        for batch in (1, 3, 17) if (ahead, length) == (2, 1) else (2,):
            new = prior.traits.length - ahead - length
            if new < 1:
                continue
            front = torch.randn(batch, ahead, width)
            behind = greedy_gap(prior, module, prior.tokens(batch, length), new, embeddings=front)
            where = f"{batch} sequences, {ahead} embeddings, a prompt of {length}"
            require(behind < 1e-3, f"{where}: a token that is a share of {behind:.3g} behind the likeliest")


class _Negated(nn.Linear):
    """A linear layer of another class."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def _replace(parent: Any, name: str, layer: nn.Module) -> None:
    setattr(parent, name, layer.eval())


def _negated(layer: nn.Linear) -> nn.Linear:
    other = _Negated(layer.in_features, layer.out_features, bias=layer.bias is not None)
    other.load_state_dict(layer.state_dict())
    return other


def _without_bias(layer: nn.Linear) -> nn.Linear:
    other = nn.Linear(layer.in_features, layer.out_features, bias=False)
    other.load_state_dict({"weight": layer.weight})
    return other


def _override(layer: nn.Module) -> None:
    original = layer.forward
    layer.forward = lambda x: -original(x)


def _set_eps(gpt: Any) -> None:
    for part in gpt.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = 3.0


def _approximate(gpt: Any) -> None:
    """GELU by tanh, where it is a tenth or more away from the exact one."""
    for block in gpt.blocks:
        block.mlp[1] = nn.GELU(approximate="tanh")
        with torch.no_grad():
            block.mlp[0].bias.fill_(-3.5)
            block.mlp[2].weight.mul_(1000.0)


_CHANGES: dict[str, Callable[[Any], object]] = {
    "nothing": lambda gpt: None,
    "a hook on an attention's last layer": lambda gpt: gpt.blocks[0].attn.proj.register_forward_hook(
        lambda _, args, out: -out
    ),
    "a hook before the last normalization": lambda gpt: gpt.ln_f.register_forward_pre_hook(
        lambda _, args: (args[0].flip(-1),)
    ),
    "a head of another class": lambda gpt: _replace(gpt, "head", _negated(gpt.head)),
    "a layer with another forward": lambda gpt: _override(gpt.blocks[0].mlp[2]),
    "values without a bias": lambda gpt: _replace(gpt.blocks[0].attn, "value", _without_bias(gpt.blocks[0].attn.value)),
    "a sigmoid in the perceptron": lambda gpt: gpt.blocks[0].mlp.__setitem__(1, nn.Sigmoid()),
    "another approximation in the perceptron": _approximate,
    "one layer more in the perceptron": lambda gpt: gpt.blocks[0].mlp.append(nn.Tanh()),
    "other eps of normalization": _set_eps,
}


@PRIOR.check(
    rule="sampling runs the layers that the module has: replaced ones, other classes, and those with hooks",
    cause="a fast way that reads the weights of layers which do more than their weights say",
    applies=lambda subject: can_generate(subject) and subject.transformer is not None,
)
def check_sampling_of_changed_layers(prior: PriorSubject) -> None:
    """Guards adapters, quantized layers and hooks: samples are of the model that was evaluated.

    Fails it::

        x = x @ self.attn.proj.weight.T + self.attn.proj.bias  # whatever self.attn.proj is
    """
    length = min(prior.shortest + 1, prior.traits.length - 2)
    for what, change in _CHANGES.items():
        module = prior.excited()
        change(inner(module))
        behind = greedy_gap(prior, module, prior.tokens(8, length), min(prior.traits.length - length, 4))
        require(behind < 1e-3, f"with {what}: a token that is a share of {behind:.3g} behind the likeliest")


@PRIOR.check(
    rule="sampling works in every floating-point type, and under autocast",
    cause="a cache in float32, or products of tensors of two types",
    applies=lambda subject: can_generate(subject) and subject.traits.strict,
)
def check_sampling_types(prior: PriorSubject) -> None:
    """Guards models in half or double precision.

    Fails it::

        keys = torch.empty(batch, heads, length, width)  # in float32 whatever the weights are
    """
    length = min(prior.shortest + 1, prior.traits.length - 2)
    for dtype, mixed in ((torch.float64, False), (torch.bfloat16, False), (torch.float32, True)):
        module = prior.excited().to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            behind = greedy_gap(prior, module, prior.tokens(5, length), min(prior.traits.length - length, 5))
        limit = 1e-6 if dtype == torch.float64 else 0.1
        where = "autocast to bfloat16" if mixed else str(dtype)
        require(behind < limit, f"{where}: a token that is a share of {behind:.3g} behind the likeliest")
