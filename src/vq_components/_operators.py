"""Operators of this package: functions that are one node to the compiler, to exporters and to dispatch modes."""

from collections.abc import Callable
from typing import Any

import torch

_NAMESPACE = "vq_components"


def operator(
    schema: str,
    *,
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes an operator of a function of tensors, of whose own work autograd sees nothing.

    Not ``torch.library.custom_op``, whose first call imports torch's compiler: seconds, for who does not compile.

    Args:
        schema: name, arguments and results, as ``torch.library.define`` reads them, what is changed in place included.
        fake: makes results of the right shapes and dtypes without the work.
        setup_context: keeps what ``backward`` needs, as ``torch.library.register_autograd`` takes it.
        backward: the gradient, if there is one.
    """
    name = schema[: schema.index("(")]
    place = f"{_NAMESPACE}::{name}"
    operators = getattr(torch.ops, _NAMESPACE)

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if not hasattr(operators, name):  # there it stays, also where a module is loaded again
            torch.library.define(place, schema[len(name) :], tags=(torch.Tag.pt2_compliant_tag,))
            torch.library.impl(place, "default", torch.no_grad()(function))
            torch.library.register_fake(place, fake)
            if backward is not None:
                torch.library.register_autograd(place, backward, setup_context=setup_context)
        made: Callable[..., Any] = getattr(operators, name).default
        return made

    return register
