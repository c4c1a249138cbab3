"""Checks of what an encoder and a decoder refuse, and how much memory they need."""

from functools import partial
from typing import Any

import torch

from ._memory import kept_by_autograd, largest_allocation
from ._report import refused, require
from ._tokenizer import TOKENIZER, TokenizerSubject
from ._tokenizer_networks import PARTS
from ._tokenizer_reference import Settings
from ._tokenizer_settings import SMALL, build, constructed, takes_also


@TOKENIZER.check(
    rule="settings that cannot be are refused by a ValueError that names them, and those at the border are taken",
    cause="a comparison that is one off, or a value that fails somewhere else, or nowhere",
    applies=takes_also("dropout"),
)
def check_settings_refused(model: TokenizerSubject) -> None:
    """Guards against typing errors in a configuration.

    Fails it::

        if dropout > 1:  # and a negative one is taken
            raise ValueError
    """
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("ch_mult", {"ch_mult": ()}),
        ("ch_mult", {"ch_mult": (1, 0)}),
        ("ch", {"ch": 0}),
        ("num_res_blocks", {"num_res_blocks": 0}),
        ("z_channels", {"z_channels": 0}),
        ("resolution", {"resolution": 7}),
        ("resolution", {"resolution": 0}),
        ("resolution", {"resolution": -2}),
        ("attn_resolutions", {"attn_resolutions": (8, 2)}),
        ("attn_resolutions", {"attn_resolutions": (16,)}),
        ("dropout", {"dropout": 1.1}),
        ("dropout", {"dropout": -0.1}),
    ]
    for part in PARTS:
        channels = "in_channels" if part == "encoder" else "out_ch"
        make, given = type(getattr(model.fresh(), part)), SMALL.keywords(part)
        for name, change in [*wrong, (channels, {channels: 0})]:
            try:
                make(**{**given, **change})
            except ValueError as error:
                require(name in str(error), f"{part} with {change} says nothing of {name}: {error}")
                require(make.__name__ in str(error), f"{part} with {change} does not say who refuses: {error}")
                continue
            require(False, f"{part} takes {change}")
        require(refused(partial(build, model, part, strange=1), TypeError), f"{part} takes strange=1")
        for change in ({"dropout": 0.0}, {"dropout": 1.0}, {"resolution": 2}, {"attn_resolutions": [4, 8]}):
            make(**{**given, **change, "z_channels": 1, "num_res_blocks": 1, "ch": 1, channels: 1})


@TOKENIZER.check(
    rule="attention makes no N x N matrix of scores, for N positions",
    cause="a layout that the kernels which save memory do not take: other than (B, heads, N, C), or not dense",
    applies=constructed,
)
def check_attention_memory(model: TokenizerSubject) -> None:
    """Guards large images: what is allocated at once, and what is kept for the backward.

    Fails it::

        scores = q @ k.transpose(1, 2)
    """
    settings, side = Settings(ch=8, ch_mult=(1,), z_channels=8, channels=8), 48
    for part in PARTS:
        network, x = build(model, part, settings), torch.randn(1, 8, side, side)
        with kept_by_autograd() as kept:
            most = largest_allocation(partial(network, x))
        largest = max(each.numel for each in kept)
        require(largest < side**4 // 4, f"{part}: a tensor of {largest} numbers is kept for {side**2} positions")
        require(most < side**4, f"{part}: {most} bytes are allocated at once for {side**2} positions")
