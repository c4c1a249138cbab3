"""Checks of what this package's priors refuse, and of the edges that they still accept."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._prior_conditional import is_own
from ._prior_subject import PRIOR, PriorSubject, inner
from ._report import refused, require, require_refused

Cases = dict[str, Callable[[], object]]


def _wrong_values(condition: Any, value: Tensor) -> dict[str, Any]:
    """Values that a condition of the known classes cannot take."""
    wrong: dict[str, Any] = {"another batch": value[:1], "no tensor": value.tolist(), "None": None}
    name = type(condition).__name__
    if name == "ClassLabel":
        wrong |= {"a column of labels": value[:, None], "one-hot rows": torch.eye(int(value.max()) + 1).long()[value]}
        wrong |= {"floating-point labels": value.float()}
    if name == "SpatialTokens":
        wrong |= {"a stack of grids": value[:, None], "one number each": value.flatten(1)[:, 0]}
        wrong |= {"floating-point tokens": value.float()}
    if name == "Coordinates":
        wrong |= {"integers": torch.zeros(len(value), 2, dtype=torch.int64), "three numbers": value[:, [0, 1, 1]]}
        wrong |= {"a number below 0": value - 1.01, "a number above 1": value + 1.01, "NaN": value * torch.nan}
    return wrong


@PRIOR.check(
    rule="a conditional prior refuses tokens and values of another form, and conditions that the image could see",
    cause="a shape that is broadcast, or values that are matched to the wrong condition",
    applies=lambda subject: subject.traits.strict and is_own(subject),
)
def check_conditional_refuses(prior: PriorSubject) -> None:
    """Guards the call: the number of values, each one's shape and range, the tokens' shape, and n_unmasked.

    Fails it::

        labels = value.reshape(-1)[: len(tokens)]  # one-hot rows are taken for labels
    """
    module, tokens, values = prior.excited(), prior.tokens(2), prior.values(2)
    cases: Cases = {
        "a value too many": partial(module, tokens, (*values, tokens[:, 0])),
        "tokens in four dimensions": partial(module, tokens[:, None, None], values),
        "no tokens": partial(module, tokens[:, :0], values),
        "a grid without rows": partial(module, tokens[:, None, :][:, :0], values),
        "a byte for each token": partial(module, tokens.to(torch.uint8), values),
    }
    if values:
        cases["a value too few"] = partial(module, tokens, values[:-1])
        cases["a tensor in place of a tuple"] = partial(module, tokens, values[0])
    given = [condition for condition in module.conditions if condition.takes_value]
    for number, condition in enumerate(given):
        for what, wrong in _wrong_values(condition, values[number]).items():
            others = (*values[:number], wrong, *values[number + 1 :])
            cases[f"{what} for {condition}"] = partial(module, tokens, others)
    require_refused(cases)
    prefix = module.prefix(tokens, values).shape[1]
    module.gpt.n_unmasked = prefix + 1
    reach = f"{prefix + 1} positions see each other, of which {prefix} are the conditions'"
    require(refused(partial(module, tokens, values), ValueError), f"{reach}: this is taken")
    module.gpt.n_unmasked = prefix
    require(bool(module(tokens, values).loss.isfinite()), "conditions that all see each other give no loss")


def _vocab_size(image: int, sizes: list[int], *, offset: bool, dropout: bool) -> int:
    tokens = image
    for size in sizes:
        tokens = tokens + size if offset else max(tokens, size)
    return tokens + 1 if dropout else tokens


@PRIOR.check(
    rule="a conditional prior is built with shares in [0, 1], conditions, and a transformer of as many tokens as it "
    "says that it needs",
    cause="a comparison that is one off, or a check that never runs",
    applies=lambda subject: subject.traits.strict and is_own(subject),
)
def check_conditional_constructor(prior: PriorSubject) -> None:
    """Guards the constructor and the number of tokens, at both sides of each limit.

    Fails it::

        if gpt.vocab_size <= needed:  # one that is exactly large enough is refused
    """
    module = prior.excited()
    conditions, image = module.conditions, int(module.image_vocab)
    sizes = [condition.vocab_size for condition in conditions]
    for offset in (True, False):
        for dropout in (0.0, 0.2):
            for number in (1, image, 1000):
                settings = {"image_vocab": number, "offset": offset, "condition_dropout": dropout}
                found = module.vocab_size(conditions=conditions, **settings)
                wanted = _vocab_size(number, sizes, offset=offset, dropout=dropout > 0)
                require(found == wanted, f"vocab_size({settings}) is {found} instead of {wanted}")
    plain: dict[str, Any] = {"image_vocab": image, "conditions": conditions, "offset": module.offset}
    plain |= {"condition_dropout": module.condition_dropout}
    kind: Any = type(module)
    build = partial(kind, module.gpt)
    largest = image  # the largest image_vocab that the transformer has tokens for
    while module.vocab_size(**{**plain, "image_vocab": largest + 1}) <= module.gpt.vocab_size:
        largest += 1
    build(**{**plain, "image_vocab": largest})
    for pkeep in (0.0, 1.0):
        build(pkeep=pkeep, **plain)
    if module.condition_dropout > 0:
        build(**{**plain, "condition_dropout": 1.0})
    wrong: dict[str, dict[str, Any]] = {
        "a transformer with a token too few": {"image_vocab": largest + 1},
        "no image tokens": {"image_vocab": 0},
        "pkeep below 0": {"pkeep": -0.1},
        "pkeep above 1": {"pkeep": 1.1},
        "condition_dropout below 0": {"condition_dropout": -0.1},
        "condition_dropout above 1": {"condition_dropout": 1.1},
        "no conditions": {"conditions": ()},
        "a condition in place of a tuple": {"conditions": conditions[0]},
        "a class in place of a condition": {"conditions": (type(conditions[0]),)},
    }
    cases: Cases = {what: partial(build, **{**plain, **settings}) for what, settings in wrong.items()}
    for condition in conditions:
        if condition.takes_value:
            made: Any = type(condition)
            cases |= {f"{made.__name__}({n})": partial(made, n) for n in (0, -1)}
    require_refused(cases)


@PRIOR.check(
    rule="a transformer refuses sizes and shares out of range, and embeddings that do not fit; what just fits is taken",
    cause="a limit that is compared with < in place of <=, or embeddings that are not counted as positions",
    applies=lambda subject: subject.traits.strict and subject.transformer is not None,
)
def check_transformer_limits(prior: PriorSubject) -> None:
    """Guards the constructor of the transformer, and what is put before its tokens.

    Fails it::

        if tokens.shape[1] > self.block_size:  # embeddings take positions as well
    """
    module = prior.excited()
    gpt = inner(module)
    size, block, width = gpt.vocab_size, gpt.block_size, gpt.pos_emb.shape[2]
    tokens = torch.randint(size, (2, block))
    full = gpt(tokens[:, 1:], embeddings=torch.zeros(2, 1, width))
    require(full.shape[1] == block, f"{block - 1} tokens after an embedding have {full.shape[1]} logits")
    kind: Any = type(gpt)
    build = partial(kind, 7, 6)
    plain = {"n_layer": 1, "n_head": 2, "n_embd": 8}
    for edge in ({"n_unmasked": 6}, {"attn_pdrop": 1.0}, {"embd_pdrop": 0.0}, {"n_head": 8}):
        build(**{**plain, **edge})
    cases: Cases = {
        "an embedding too many": partial(gpt, tokens, embeddings=torch.zeros(2, 1, width)),
        "embeddings of another width": partial(gpt, tokens[:, :1], embeddings=torch.zeros(2, 1, width + 1)),
        "embeddings of another batch": partial(gpt, tokens[:, :1], embeddings=torch.zeros(1, 1, width)),
        "an embedding in two dimensions": partial(gpt, tokens[:, :1], embeddings=torch.zeros(2, width)),
        "tokens in three dimensions": partial(gpt, tokens[:, :1, None]),
        "no vocabulary": partial(kind, 0, 6, **plain),
        "no positions": partial(kind, 7, 0, **plain),
    }
    for name, number in (("n_layer", 0), ("n_head", 0), ("n_head", 3), ("n_embd", 0), ("n_unmasked", -1)):
        cases[f"{name}={number}"] = partial(build, **{**plain, name: number})
    cases["n_unmasked beyond the block"] = partial(build, **plain, n_unmasked=7)
    for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop"):
        cases |= {f"{name}={share}": partial(build, **{**plain, name: share}) for share in (-0.1, 1.1)}
    require_refused(cases)


@PRIOR.check(
    rule="embeddings start from codebooks of any width and type, at any token that leaves room, without NaN",
    cause="a division by a spread of 0, or a comparison that leaves out the last token",
    applies=lambda subject: subject.traits.strict and hasattr(subject.transformer, "start_embedding_"),
)
def check_start_embedding_limits(prior: PriorSubject) -> None:
    """Guards wide, constant and half-precision codebooks, half-precision transformers, and the first and last tokens.

    Fails it::

        start = start / start.std()  # NaN where all entries are the same
    """
    for dtype, kind in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float64,) * 2):
        gpt = getattr(prior.fresh(), "gpt", None) or prior.fresh()
        gpt = gpt.to(dtype)
        size, width = gpt.tok_emb.weight.shape
        for first, count in ((0, size), (size - 5, 5), (0, 4)):
            codebook = (3 + torch.randn(count, 3 * width)).to(kind)
            before = gpt.tok_emb.weight.detach().clone()
            gpt.start_embedding_(codebook, first_token=first)
            now, where = gpt.tok_emb.weight.detach(), f"{count} entries in {kind} from token {first} on, in {dtype}"
            found = float(now[first : first + count].double().square().mean().sqrt())
            require(abs(found - 0.02) < 5e-4, f"{where}: their size is {found:.4g} instead of 0.02")
            mean = float(now[first : first + count].double().mean(dim=0).abs().max())
            require(mean < 5e-4, f"{where}: their mean is up to {mean:.3g} instead of 0")
            kept = torch.cat([now[:first] == before[:first], now[first + count :] == before[first + count :]])
            require(bool(kept.all()), f"{where}: other embeddings changed")
        require(gpt.tok_emb.weight.requires_grad and gpt.tok_emb.weight.dtype == dtype, "the parameter is another one")
        gpt.start_embedding_(torch.ones(4, 3, dtype=kind))
        require(bool(gpt.tok_emb.weight.isfinite().all()), f"a constant codebook in {kind} gives NaN")
    book, start = torch.randn(5, 3), gpt.start_embedding_
    require_refused(
        {
            "a codebook that goes on behind the last token": partial(start, book, first_token=size - 4),
            "a codebook before the first token": partial(start, book, first_token=-1),
            "a codebook in three dimensions": partial(start, book[None]),
            "a codebook that is too large": partial(start, torch.randn(size + 1, 3)),
        }
    )
