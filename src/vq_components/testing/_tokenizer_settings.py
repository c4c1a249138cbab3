"""Checks of an encoder and a decoder that are built with the published keywords."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ._compare import differ, gap
from ._report import require
from ._tokenizer import TOKENIZER, TokenizerSubject
from ._tokenizer_networks import PARTS, TIGHT, excite_, published, reference_of
from ._tokenizer_reference import Settings

SMALL = Settings()
# Widths that 32 divides, and widths that it does not; attention everywhere, nowhere, and at one of the levels.
VARIANTS = (
    SMALL,
    Settings(ch=8, ch_mult=(1, 2, 3), num_res_blocks=2, attn_resolutions=(16,), resolution=16, channels=1),
    Settings(ch=20, ch_mult=(2, 1), attn_resolutions=(4, 8), z_channels=2),
    Settings(ch=4, ch_mult=(1, 2, 2, 1), attn_resolutions=(2, 4), resolution=16, channels=4),
    Settings(ch=36, ch_mult=(1,), num_res_blocks=3, attn_resolutions=(1,), resolution=1),
    Settings(ch=264, ch_mult=(1,)),
)


def _takes(network: Any, *names: str) -> bool:
    return set(names) <= set(inspect.signature(type(network)).parameters)


def constructed(subject: TokenizerSubject) -> bool:
    """Whether encoder and decoder are strict and can be built by the published keywords."""
    if not (subject.traits.strict and published(subject)):
        return False
    module = subject.fresh()
    return all(_takes(getattr(module, part), *SMALL.keywords(part)) for part in PARTS)


def takes_also(name: str) -> Callable[[TokenizerSubject], bool]:
    """For networks that can be built by the published keywords and one more."""

    def applies(subject: TokenizerSubject) -> bool:
        return constructed(subject) and all(_takes(getattr(subject.fresh(), part), name) for part in PARTS)

    return applies


def build(model: TokenizerSubject, part: str, settings: Settings = SMALL, **others: Any) -> Any:
    """A new network of the same class."""
    return type(getattr(model.fresh(), part))(**settings.keywords(part), **others)


def some_input(part: str, settings: Settings = SMALL, *, side: int = 2) -> Tensor:
    """What a network takes, two of it and not square, in float64."""
    factor = 2 ** (len(settings.ch_mult) - 1) if part == "encoder" else 1
    channels = settings.channels if part == "encoder" else settings.z_channels
    return torch.randn(2, channels, side * factor, (side + 1) * factor, dtype=torch.float64)


@TOKENIZER.check(
    rule="settings give the published entries, with the published shapes, and what these compute",
    cause="attention at another level, widths that are those of the next level, or a block too few in the decoder",
    applies=constructed,
)
def check_autoencoder_settings(model: TokenizerSubject) -> None:
    """Guards configurations other than the tested model's own: one level and four, few channels and many.

    Fails it::

        attention = [resolution // 2**i in attn_resolutions for i in range(1, levels + 1)]
    """
    for settings in VARIANTS:
        for part in PARTS:
            network = build(model, part, settings)
            found = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
            text = _entries_differ(found, settings.shapes(part))
            require(not text, f"{part} of {settings}: {text}")
            excite_(network)
            slow, x = reference_of(model, network), some_input(part, settings)
            with torch.no_grad():
                expected = slow.encode(x) if part == "encoder" else slow.decode(x)
                text = differ(network(x), expected, **TIGHT)
            require(not text, f"{part} of {settings}: {text}")
            _check_attributes(network, part, settings)


def _entries_differ(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> str:
    missing, stray = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or stray:
        return f"{len(missing)} entries are missing {missing[:3]}, {len(stray)} are none of them {stray[:3]}"
    wrong = [f"{key} is {found[key]} instead of {shape}" for key, shape in expected.items() if found.get(key) != shape]
    return "; ".join(wrong[:3])


def _check_attributes(network: Any, part: str, settings: Settings) -> None:
    """What a network says of itself, where it says it."""
    expected = {**settings.keywords(part), "stride": 2 ** (len(settings.ch_mult) - 1)}
    for name in ("stride", "in_channels", "out_ch", "z_channels"):
        value = getattr(network, name, expected.get(name))
        require(value == expected.get(name), f"{part}.{name} is {value} instead of {expected.get(name)}")


def _without_autograd(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = network(x)
    return result


@TOKENIZER.check(
    rule="each block drops the given share before its second convolution, scales the rest up, and only in training",
    cause="a share that reaches some of the blocks, or dropout that eval() does not switch off",
    applies=takes_also("dropout"),
)
def check_autoencoder_dropout(model: TokenizerSubject) -> None:
    """Guards dropout by looking at what each block's second convolution gets.

    Fails it::

        self.mid = Middle(width, dropout=0.0)
    """
    settings = replace(SMALL, ch_mult=(1, 2), num_res_blocks=2)
    for part in PARTS:
        for share in (0.0, 0.3, 1.0):
            network = build(model, part, settings, dropout=share).double()
            seen = _watch_dropout(network)
            for training in (True, False):
                seen.clear()
                network.train(training)(some_input(part, settings, side=6))
                blocks = {name.rpartition(".")[0] for name in settings.shapes(part) if ".conv2." in name}
                require(len(seen) == len(blocks), f"{part}: {len(seen)} of {len(blocks)} blocks have run")
                for name, (before, after) in seen.items():
                    _check_dropped(before, after, share * training, f"{part}.{name}, dropout={share}")


def _watch_dropout(network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Fills in, block by block, the activations before and after dropout."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    norms: dict[str, Tensor] = {}

    def norm(name: str) -> Callable[..., None]:
        return lambda module, args, result: norms.__setitem__(name, result.detach())

    def convolution(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name] = (nn.functional.silu(norms[name]), args[0].detach())

        return note

    for name, part in network.named_modules():
        block, _, layer = name.rpartition(".")
        if layer == "norm2":
            part.register_forward_hook(norm(block))
        elif layer == "conv2":
            part.register_forward_pre_hook(convolution(block))
    return seen


def _check_dropped(before: Tensor, after: Tensor, share: float, where: str) -> None:
    dropped = (after == 0) & (before != 0)
    found, count = float(dropped.double().mean()), before.numel()
    deviation = (share * (1 - share) / count) ** 0.5
    require(abs(found - share) <= 5 * deviation, f"{where}: {100 * found:.1f} % of {count} activations are dropped")
    kept = ~dropped
    if share < 1:
        text = differ(after[kept], before[kept] / (1 - share), rtol=1e-6, atol=1e-9)
        require(not text, f"{where}: those that are kept: {text}")


@TOKENIZER.check(
    rule="activations that are computed again give the same values and gradients, of dropout too, and every block is "
    "computed again",
    cause="an option that is not handed on, a reentrant checkpoint, or random numbers that differ in the second run",
    applies=takes_also("checkpoint_activations"),
)
def check_recomputation(model: TokenizerSubject) -> None:
    """Guards the option that saves memory: against the plain network, by counts of calls, and with frozen layers.

    Fails it::

        x = checkpoint(block, x, use_reentrant=True)  # and torch.autograd.grad raises
    """
    settings = Settings(ch_mult=(1, 2), num_res_blocks=2, attn_resolutions=(8,))
    for part in PARTS:
        plain, thrifty = (
            build(model, part, settings, dropout=0.3, checkpoint_activations=option).double()
            for option in (False, True)
        )
        thrifty.load_state_dict(plain.state_dict())
        x, calls = some_input(part, settings), (_count_blocks(plain), _count_blocks(thrifty))
        for training in (True, False):
            results = []
            for network, counts in ((plain, calls[0]), (thrifty, calls[1])):
                counts.clear()
                torch.manual_seed(1)
                for parameter in network.conv_in.parameters():  # frozen, so that no input of a block has a gradient
                    parameter.requires_grad_(False)
                result = network.train(training)(x)
                wanted = [parameter for parameter in network.parameters() if parameter.requires_grad]
                gradients = torch.autograd.grad(result.square().mean(), wanted, allow_unused=True)
                require(all(each is not None for each in gradients), f"{part}: parameters without a gradient")
                results.append(torch.cat([each.flatten() for each in (result, *gradients)]))
            text = gap(results[1], results[0])
            require(not text, f"{part}, {'training' if training else 'evaluation'}: {text}")
            for name, count in calls[0].items():
                again = calls[1].get(name, 0)
                require(count == 1, f"{part}.{name} runs {count} times without the option, training={training}")
                require(again == 1 + training, f"{part}.{name} runs {again} times with it, training={training}")
        calls[1].clear()
        text = gap(_without_autograd(thrifty.eval(), x), _without_autograd(plain.eval(), x))
        require(not text and set(calls[1].values()) == {1}, f"{part}, without autograd: {text or calls[1]}")


def _count_blocks(network: nn.Module) -> dict[str, int]:
    """Counts, from now on, how often each block's first layer runs."""
    counts: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        return lambda module, args: counts.__setitem__(name, counts.get(name, 0) + 1)

    for name, part in network.named_modules():
        if name.endswith((".conv1", ".q")):
            part.register_forward_pre_hook(count(name))
    return counts
