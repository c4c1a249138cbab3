"""Checks of a prior that is built like the original: its network and what it refuses."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._prior_subject import PRIOR, PriorSubject, inner, takes_embeddings
from ._report import refused, require


def _has_transformer(subject: PriorSubject) -> bool:
    return subject.transformer is not None


@PRIOR.check(
    rule="a transformer with the original's parts computes what these say: pre-normalization, softmax(q k / sqrt(d)), "
    "GELU, residuals",
    cause="heads mixed by a view, a scale by the wrong width, or a normalization in the wrong place",
    applies=_has_transformer,
)
def check_transformer(prior: PriorSubject) -> None:
    """Guards the network by a slow one in float64, for several lengths.

    Fails it::

        q = q.view(B, heads, T, D)  # must be view(B, T, heads, D).transpose(1, 2)
    """
    module = prior.excited()
    gpt = inner(module)
    size = len(gpt.tok_emb.weight)
    for length in {1, 2, gpt.block_size}:
        tokens = torch.randint(size, (3, length))
        text = prior.differ(_logits_of(gpt(tokens)), transformer_logits(gpt, gpt.tok_emb.weight.double()[tokens]))
        require(not text, f"{length} tokens: {text}")
    if gpt is module and takes_embeddings(prior):
        tokens = torch.randint(size, (3, 4))
        front = torch.randn(3, 2, gpt.pos_emb.shape[2])
        x = torch.cat([front.double(), gpt.tok_emb.weight.double()[tokens]], dim=1)
        text = prior.differ(_logits_of(gpt(tokens, embeddings=front)), transformer_logits(gpt, x))
        require(not text, f"with embeddings: {text}")
    tokens = torch.randint(size, (3, gpt.block_size))
    for name, part in gpt.named_modules():
        if isinstance(part, nn.Dropout):
            part.p = float(name.startswith("blocks."))
    x = gpt.tok_emb.weight.double()[tokens] + gpt.pos_emb.double()
    text = prior.differ(_logits_of(gpt.train()(tokens)), _norm(x, gpt.ln_f) @ gpt.head.weight.double().T)
    require(not text, f"with all of the residuals dropped: {text}")


def _logits_of(answer: Any) -> Tensor:
    """Logits alone, or first of several results."""
    logits: Tensor = answer[0] if isinstance(answer, tuple) else answer
    return logits


def transformer_logits(gpt: Any, x: Tensor) -> Tensor:
    """Logits of embedded tokens ``(B, T, C)``, slowly."""
    x = x.detach() + gpt.pos_emb.detach().double()[:, : x.shape[1]]
    length, width = x.shape[1:]
    see = torch.ones(length, length).tril().bool()
    unmasked = gpt.n_unmasked if hasattr(gpt, "n_unmasked") else gpt.config.n_unmasked
    see[:unmasked, :unmasked] = True
    for block in gpt.blocks:
        heads = block.attn.n_head
        y = _norm(x, block.ln1)
        parts = []
        for head in range(heads):
            rows = slice(head * width // heads, (head + 1) * width // heads)
            q, k, v = (_linear(y, layer)[..., rows] for layer in (block.attn.query, block.attn.key, block.attn.value))
            score = (q @ k.transpose(1, 2) / math.sqrt(width // heads)).masked_fill(~see, -torch.inf)
            parts.append(score.softmax(dim=2) @ v)
        x = x + _linear(torch.cat(parts, dim=2), block.attn.proj)
        y = _linear(_norm(x, block.ln2), block.mlp[0])
        x = x + _linear(0.5 * y * (1 + torch.erf(y / math.sqrt(2))), block.mlp[2])
    last: Tensor = gpt.head.weight.detach().double()
    return _norm(x, gpt.ln_f) @ last.T


def _norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    centered = x - x.mean(dim=2, keepdim=True)
    unit = centered / (centered.square().mean(dim=2, keepdim=True) + layer.eps).sqrt()
    return unit * layer.weight.detach().double() + layer.bias.detach().double()


def _linear(x: Tensor, layer: Any) -> Tensor:
    product: Tensor = x @ layer.weight.detach().double().T
    return product if layer.bias is None else product + layer.bias.detach().double()


@PRIOR.check(
    rule="matrices of linear layers decay, biases, normalizations and embeddings do not, and each parameter is in one "
    "group",
    cause="groups that are swapped, or a parameter that is in neither",
    applies=lambda subject: hasattr(subject.transformer, "parameter_groups"),
)
def check_weight_decay_groups(prior: PriorSubject) -> None:
    """Guards the optimizer's groups.

    Fails it::

        decay = [p for p in self.parameters() if p.ndim > 1]  # embeddings too
    """
    module = prior.fresh()
    gpt = inner(module)
    groups = gpt.parameter_groups(0.3)
    names = {id(parameter): name for name, parameter in gpt.named_parameters()}
    listed = [names.get(id(parameter), "?") for group in groups for parameter in group["params"]]
    require(sorted(listed) == sorted(names.values()), f"{len(listed)} parameters in groups, {len(names)} in the module")
    linear = {id(part.weight) for part in gpt.modules() if isinstance(part, nn.Linear)}
    for group in groups:
        wrong = [names[id(p)] for p in group["params"] if group["weight_decay"] != (0.3 if id(p) in linear else 0.0)]
        require(not wrong, f"weight decay {group['weight_decay']} for {', '.join(wrong[:5])}")


@PRIOR.check(
    rule="weights start from N(0, 0.02), those that write to the residual stream from N(0, 0.02 / sqrt(2 layers)); "
    "biases from 0",
    cause="a scale that is forgotten, or applied to other layers",
    applies=lambda subject: subject.traits.strict and _has_transformer(subject),
)
def check_initialization(prior: PriorSubject) -> None:
    """Guards the start of a deep transformer.

    Fails it::

        nn.init.normal_(self.mlp[2].weight, std=0.02)
    """
    module = prior.fresh()
    gpt = inner(module)
    for name, parameter in gpt.named_parameters():
        if parameter.ndim < 2:
            start = 1.0 if "ln" in name and name.endswith("weight") else 0.0
            require(bool((parameter == start).all()), f"{name} does not start from {start}")
            continue
        residual = name.endswith(("attn.proj.weight", "mlp.2.weight"))
        expected = 0.02 / math.sqrt(2 * len(gpt.blocks) if residual else 1)
        found = float(parameter.detach().std())
        require(abs(found - expected) < 0.25 * expected, f"{name} has std {found:.3g} instead of {expected:.3g}")


@PRIOR.check(
    rule="embeddings that start from a codebook keep its geometry: centered, in proportion, at the given tokens alone",
    cause="a projection that is no isometry, or the first token ignored",
    applies=lambda subject: hasattr(subject.transformer, "start_embedding_"),
)
def check_start_embedding(prior: PriorSubject) -> None:
    """Guards embeddings that start from a tokenizer's entries.

    Fails it::

        self.tok_emb.weight[: len(codebook)] = codebook @ torch.randn(dim, width)
    """
    module = prior.fresh()
    gpt = inner(module)
    size, first = gpt.vocab_size - 4, 3
    codebook = 2.0 * torch.randn(size, min(gpt.pos_emb.shape[2], 5)) + 3.0
    before = gpt.tok_emb.weight.detach().clone()
    gpt.start_embedding_(codebook, first_token=first)
    now = gpt.tok_emb.weight.detach()
    rows = torch.arange(len(now))
    others = (rows < first) | (rows >= first + size)
    require(torch.equal(now[others], before[others]), "embeddings of other tokens changed")
    new = now[~others]
    require(float(new.mean(dim=0).abs().max()) < 1e-4, f"their mean is {float(new.mean(dim=0).abs().max()):.3g}, not 0")
    found = float(new.square().mean().sqrt())
    require(abs(found - 0.02) < 1e-3, f"their size is {found:.3g} instead of 0.02")
    ratio = torch.pdist(new.double()) / torch.pdist(codebook.double())
    spread = float(ratio.max() / ratio.min())
    require(spread < 1.001, f"distances are not in proportion: ratios differ by a factor of {spread:.4g}")


@PRIOR.check(
    rule="what cannot be right is refused: tokens outside of the vocabulary, sequences that are too long, no integers",
    cause="an embedding that is read beyond its end, or a position that is reused",
    applies=lambda subject: subject.traits.strict,
)
def check_prior_refuses(prior: PriorSubject) -> None:
    """Guards against mistakes that end in an IndexError, or in nothing at all.

    Fails it::

        tokens = tokens[:, -block_size:]
    """
    module, values = prior.excited(), prior.values(2)
    tokens = prior.tokens(2)
    wrong = {
        "a negative token": torch.where(torch.arange(tokens.shape[1]) == 1, -1, tokens),
        "a token beyond the vocabulary": torch.where(
            torch.arange(tokens.shape[1]) == 1, prior.traits.vocab_size, tokens
        ),
        "floating-point tokens": tokens.float(),
        "a sequence that is too long": prior.tokens(2, prior.traits.length + 2),
        "one dimension": tokens[0],
    }
    cases = [(name, bad, values) for name, bad in wrong.items()]
    conditions = [condition for condition in getattr(module, "conditions", ()) if condition.takes_value]
    for number, condition in enumerate(conditions):
        for shift in (-condition.vocab_size, condition.vocab_size):
            others = list(values)
            others[number] = values[number] + shift
            cases.append((f"a value of {condition} that is {shift} off", tokens, tuple(others)))
    for name, bad, given in cases:
        require(refused(partial(prior.logits, module, bad, given), ValueError, TypeError), f"{name} is taken")
