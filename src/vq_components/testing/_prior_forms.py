"""Checks of the forms that tokens and values may have, of the loss's precision, and of how much training drops."""

import math
from typing import Any

import torch
from torch import Tensor

from ._compare import gap
from ._prior_conditional import is_own
from ._prior_subject import PRIOR, PriorSubject, inner
from ._report import require


@PRIOR.check(
    rule="tokens may be a grid or its raster sequence, int64 or int32; spatial values likewise",
    cause="a grid that is read by columns, or integers that are not converted",
    applies=lambda subject: subject.traits.strict and subject.transformer is not None,
)
def check_token_forms(prior: PriorSubject) -> None:
    """Guards what tokenizers give: grids, and integers of two sizes.

    Fails it::

        tokens = tokens.mT.flatten(1)  # columns first
    """
    module, tokens, values = prior.excited(), prior.tokens(3), prior.values(3)
    base = prior.logits(module, tokens, values)
    small = tuple(value.int() if value.dtype == torch.int64 else value for value in values)
    text = gap(prior.logits(module, tokens.int(), small), base)
    require(not text, f"int32 tokens, compared with int64: {text}")
    flat = tuple(value.flatten(1) if value.ndim == 3 else value for value in values)
    text = gap(prior.logits(module, tokens, flat), base)
    require(not text, f"spatial values in raster order, compared with a grid: {text}")
    if not is_own(prior):
        front = torch.randn(3, 1, module.pos_emb.shape[2], dtype=torch.bfloat16)
        first = module(tokens[:, 1:], embeddings=front.float())
        text = gap(module(tokens[:, 1:], embeddings=front.double()), first)
        require(not text, f"float64 embeddings, compared with float32: {text}")
        half = module.to(torch.bfloat16)
        text = gap(half(tokens[:, 1:], embeddings=front.float()), half(tokens[:, 1:], embeddings=front))
        require(not text, f"float32 embeddings, compared with bfloat16 in a bfloat16 module: {text}")
        return
    length = tokens.shape[1]
    for height in [n for n in range(1, length + 1) if length % n == 0]:
        grid = tokens.view(3, height, length // height)
        text = gap(prior.logits(module, grid, values), base)
        require(not text, f"a grid of {tuple(grid.shape[1:])}, compared with its raster sequence: {text}")
        text = gap(module(grid.int(), values).loss, module(tokens, values).loss)
        require(not text, f"the loss of an int32 grid of {tuple(grid.shape[1:])}: {text}")


@PRIOR.check(
    rule="the loss is a float32 scalar that agrees with float64 logarithms of the logits, in half types and for "
    "logits of any size",
    cause="a cross entropy in half precision, or a softmax before the logarithm",
    applies=lambda subject: subject.traits.strict and subject.adapter.loss is not None,
)
def check_prior_loss_precision(prior: PriorSubject) -> None:
    """Guards the loss in bfloat16, under autocast, in float64, and where probabilities are 0 in float32.

    Fails it::

        loss = -logits.softmax(dim=2).gather(2, tokens[..., None]).log().mean()
    """
    tokens, values = prior.tokens(6), prior.values(6)
    for dtype, mixed, scale in (
        (torch.bfloat16, False, 1.0),
        (torch.bfloat16, False, 40.0),
        (torch.float32, True, 1.0),
        (torch.float32, False, 1e4),
        (torch.float64, False, 1.0),
    ):
        module = prior.excited().to(dtype)
        with torch.no_grad():
            inner(module).head.weight.mul_(scale)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            answer = module(tokens, values)
        where = f"{'autocast' if mixed else dtype}, logits times {scale:g}"
        logarithm = answer.logits.detach().double().log_softmax(dim=2)
        expected = float(-logarithm.gather(2, tokens[:, :, None]).mean())
        found = float(answer.loss.detach())
        require(abs(found - expected) <= 1e-4 * expected, f"{where}: the loss is {found:.7g} instead of {expected:.7g}")
        require(answer.loss.dtype == torch.float32, f"{where}: the loss is {answer.loss.dtype}")
        require(answer.loss.ndim == 0 and answer.loss.requires_grad, f"{where}: the loss is no scalar with a gradient")
        bits = float(answer.bits_per_token) * math.log(2)
        require(abs(bits - expected) <= 1e-4 * expected, f"{where}: bits per token are {bits:.7g} nats")


@PRIOR.check(
    rule="the share that training drops is the declared one: of embeddings, of what layers add, of attention weights",
    cause="probabilities handed on in another order, or one of several layers left out",
    applies=lambda subject: subject.traits.dropout is not None and subject.transformer is not None,
)
def check_dropout_shares(prior: PriorSubject) -> None:
    """Guards the three dropouts of a transformer by counting zeros.

    Fails it::

        Block(n_embd, n_head, resid_pdrop, attn_pdrop)  # which takes attn_pdrop first
    """
    embeddings, residuals, attention = prior.traits.dropout or (0.0, 0.0, 0.0)
    module = prior.excited().train()
    gpt, batch = inner(module), 200
    for block in gpt.blocks:  # every value is one
        with torch.no_grad():
            block.attn.value.weight.zero_()
            block.attn.value.bias.fill_(1.0)
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, args, out: seen.update({name: out.detach()})

    handles = [gpt.blocks[0].register_forward_pre_hook(lambda _, args: seen.update({"embeddings": args[0].detach()}))]
    for number, block in enumerate(gpt.blocks):
        handles.append(block.attn.register_forward_hook(keep(f"what attention {number} adds")))
        handles.append(block.mlp.register_forward_hook(keep(f"what perceptron {number} adds")))
        name = f"attention {number}"
        handles.append(
            block.attn.proj.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].detach()}))
        )
    prior.logits(module, prior.tokens(batch), prior.values(batch))
    for handle in handles:
        handle.remove()
    for name, given in seen.items():
        wanted = embeddings if name == "embeddings" else residuals
        if name in {f"attention {number}" for number in range(len(gpt.blocks))}:
            if prior.traits.n_unmasked > 1 or getattr(gpt, "n_unmasked", 0) > 1:
                continue
            # The first position sees itself alone: its only weight is dropped, or 1 / (1 - share).
            heads = gpt.blocks[0].attn.n_head
            given, wanted = given[:, 0].reshape(-1, heads, given.shape[2] // heads)[..., 0], attention
            off = (given - 1 / (1 - wanted)).abs().where(given != 0, 0.0)
            require(float(off.max()) < 1e-4, f"{name}: a kept weight is {float(off.max()):.3g} off")
        share = float((given == 0).double().mean())
        limit = 5 * math.sqrt(wanted * (1 - wanted) / given.numel()) + 1e-3
        require(abs(share - wanted) < limit, f"{name}: a share of {share:.3f} is dropped, not {wanted}")


@PRIOR.check(
    rule="parameters have the original's names and shapes, and its files, which hold masks, are loaded",
    cause="a layer that is narrower or has no bias, or a mask that is read wrongly",
    applies=lambda subject: subject.traits.strict and subject.transformer is not None,
)
def check_original_files(prior: PriorSubject) -> None:
    """Guards files: the original's are loaded, and those of a model with another ``n_unmasked`` are refused.

    Fails it::

        self.head = nn.Linear(n_embd, vocab_size)  # the original has no bias here
    """
    module, tokens, values = prior.excited(), prior.tokens(3), prior.values(3)
    gpt = inner(module)
    prefix, width = "" if gpt is module else "gpt.", gpt.pos_emb.shape[2]
    state = module.state_dict()
    expected = {prefix + name: shape for name, shape in _original_shapes(gpt, width).items()}
    odd = sorted(expected.keys() ^ state.keys())
    require(not odd, f"{', '.join(odd[:5])} in one of the original and this")
    wrong = [name for name, shape in expected.items() if tuple(state[name].shape) != shape]
    other_eps = [name for name, part in gpt.named_modules() if getattr(part, "eps", 1e-5) != 1e-5]
    require(not other_eps, f"eps of {', '.join(other_eps[:3])} is not 1e-5, the original's")
    require(not wrong, f"{', '.join(f'{name} is {tuple(state[name].shape)}' for name in wrong[:3])}")
    base, length = prior.logits(module, tokens, values), gpt.block_size
    for unmasked in range(min(length, gpt.n_unmasked + 3)):
        mask = torch.ones(length, length).tril()
        mask[:unmasked, :unmasked] = 1
        masks = {f"{prefix}blocks.{n}.attn.mask": mask[None, None].clone() for n in range(len(gpt.blocks))}
        other = prior.fresh().eval()
        try:
            other.load_state_dict({**state, **masks})
        except RuntimeError:
            same = max(unmasked, 1) == max(gpt.n_unmasked, 1)
            require(not same, f"the original's file with n_unmasked={unmasked} is refused")
            continue
        require(max(unmasked, 1) == max(gpt.n_unmasked, 1), f"a file with n_unmasked={unmasked} is loaded")
        text = gap(prior.logits(other, tokens, values), base)
        require(not text, f"logits after loading a file of the original: {text}")


def _original_shapes(gpt: Any, width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the original's parameters."""
    shapes: dict[str, tuple[int, ...]] = {"pos_emb": (1, gpt.block_size, width)}
    shapes |= {f"{name}.weight": (gpt.vocab_size, width) for name in ("tok_emb", "head")}
    layers: dict[str, tuple[int, ...]] = {"ln1": (width,), "ln2": (width,)}
    layers |= {f"attn.{name}": (width, width) for name in ("key", "query", "value", "proj")}
    layers |= {"mlp.0": (4 * width, width), "mlp.2": (width, 4 * width)}
    named = {f"blocks.{n}.{name}": shape for n in range(len(gpt.blocks)) for name, shape in layers.items()}
    for name, shape in {"ln_f": (width,), **named}.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    return shapes
