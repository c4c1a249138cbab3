"""Checks of a quantizer: what its methods refuse, whatever the mode."""

import dataclasses
import math
from functools import partial

import torch

from ._compare import state_difference, state_of
from ._quantizer_subject import QUANTIZER, QuantizerSubject, has_setter
from ._report import refused, require


@QUANTIZER.check(
    rule="forward and encode refuse what is no latent and no mask of it, and are then as before",
    cause="a check in forward alone, or one that broadcasting makes pass",
    applies=lambda subject: subject.traits.strict and callable(getattr(subject.fresh(), "encode", None)),
)
def check_refuses_inputs(subject: QuantizerSubject) -> None:
    """Guards against wrong channels, dtypes and masks: a ValueError for shapes, a TypeError for types.

    Fails it::

        mask = mask.bool().expand(z.shape[0], *z.shape[2:])  # weights, and one mask for all
    """
    for training in (True, False):
        module, z = subject.started(training=training), subject.input(24)
        before, mask = state_of(module), torch.ones(subject.positions(z)) > 0
        shapes = {
            "one channel more": (torch.cat([z, z], dim=subject.traits.channel_dim),),
            "no dimension": (torch.zeros(()),),
            "a mask of another batch": (z, mask[1:]),
            "a mask with channels": (z, mask.unsqueeze(-1)),
            "a mask of one position": (z, mask.flatten()[:1]),
        }
        if subject.traits.channel_dim < 0:
            ones = [1] * (-subject.traits.channel_dim - 1)
            shapes["channels in place of the batch"] = (torch.zeros(subject.traits.dim, *ones),)
        types = {
            "integers": (z.long(),),
            "complex numbers": (z.to(torch.complex64),),
            "a mask of weights": (z, mask.float()),
            "a mask of integers": (z, mask.long()),
        }
        for method in (module, module.encode):
            for errors, cases in ((ValueError, shapes), (TypeError, types)):
                for name, arguments in cases.items():
                    call = partial(method, *arguments)
                    require(refused(call, errors), f"{name}: no {errors.__name__}")
        text = state_difference(state_of(module), before)
        require(not text, f"refused, but {text}")


@QUANTIZER.check(
    rule="decode refuses what is no index: other types, and shapes without a place for every stage",
    cause="indices.long(), which takes weights for indices",
    applies=lambda subject: subject.traits.strict and callable(getattr(subject.fresh(), "decode", None)),
)
def check_refuses_indices(subject: QuantizerSubject) -> None:
    """Guards decode, and that it takes integers of every width.

    Fails it::

        return self.codebook[indices.long()]
    """
    module = subject.started()
    indices = torch.zeros((2, 5, *subject.traits.index_shape), dtype=torch.int64)
    for dtype in (torch.float32, torch.bool):
        require(refused(partial(module.decode, indices.to(dtype)), TypeError), f"{dtype} is decoded")
    expected = module.decode(indices)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        text = subject.differ(module.decode(indices.to(dtype)), expected)
        require(not text, f"{dtype}, compared with int64: {text}")
    if subject.traits.index_shape:
        short = indices.flatten(2)[..., :-1] if indices[0, 0].numel() > 1 else indices[..., 0]
        require(refused(partial(module.decode, short), ValueError), f"{tuple(short.shape)} is decoded")


@QUANTIZER.check(
    rule="revival refuses what is no setting, and shares and decays outside [0, 1)",
    cause="a decay of 1, with which no entry ever dies, taken in silence",
    applies=lambda subject: subject.traits.strict and getattr(subject.fresh(), "revival", None) is not None,
)
def check_refuses_revivals(subject: QuantizerSubject) -> None:
    """Guards a training of days against settings that do nothing.

    Fails it::

        assert 0 <= decay <= 1
    """
    module = subject.fresh()
    settings = module.revival
    for name in ("threshold", "decay"):
        for value in (1.0, -0.1, math.nan):
            call = partial(dataclasses.replace, settings, **{name: value})
            require(refused(call, ValueError), f"{name}={value} is taken")
        dataclasses.replace(settings, **{name: 0.0})
    require(refused(partial(setattr, module, "revival", True), TypeError), "revival = True is taken")
    require(module.revival == settings, f"refused, but revival is {module.revival}")


@QUANTIZER.check(
    rule="set_codebook_ refuses other shapes, and entries that are not finite, and is then as before",
    cause="copy_(), which broadcasts one entry to all",
    applies=lambda subject: subject.traits.strict and has_setter(subject),
)
def check_refuses_codebooks(subject: QuantizerSubject) -> None:
    """Guards a trained codebook against one that cannot take its place.

    Fails it::

        self.weight.copy_(codebook)
    """
    module = subject.started()
    before, entries = state_of(module), subject.codebook(module).clone()
    broken = entries.clone()
    broken[-1, -1] = torch.nan
    for name, bad in {
        "one entry": entries[:1],
        "an entry too few": entries[1:],
        "a channel too few": entries[:, 1:],
        "one number": entries[0, 0],
        "NaN in one entry": broken,
        "infinity in one entry": broken.nan_to_num(nan=torch.inf),
    }.items():
        require(refused(partial(module.set_codebook_, bad), ValueError), f"{name} is taken")
    text = state_difference(state_of(module), before)
    require(not text, f"refused, but {text}")
