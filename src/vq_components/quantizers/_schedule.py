"""When pending statistics are applied: by the caller, after an optimizer's step, or by the next forward."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Schedule:
    """How many optimizers a quantizer is tied to. Copies and unpickled quantizers are tied to none."""

    def __init__(self) -> None:
        self.ties = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Schedule":
        return Schedule()

    def __reduce__(self) -> tuple[type["Schedule"], tuple[()]]:
        return Schedule, ()


class UpdateHandle:
    """Ties quantizers to an optimizer until :meth:`remove` is called."""

    def __init__(self, optimizer: Any, schedules: Sequence[Schedule], update: Callable[[], None]) -> None:
        inner = optimizer
        while hasattr(inner, "optimizer"):  # Accelerate's wrapper is an Optimizer itself, but its hooks never run
            inner = inner.optimizer
        if not isinstance(inner, torch.optim.Optimizer):
            raise TypeError(
                f"update_after hooks into a torch.optim.Optimizer, or a wrapper that holds one as .optimizer, "
                f"but got {type(optimizer).__name__}. Call update_() after each step instead."
            )
        self._schedules = list(schedules)
        self._hook = inner.register_step_post_hook(lambda *_: update())
        for schedule in self._schedules:
            schedule.ties += 1

    def remove(self) -> None:
        """Unties the quantizers; a second call does nothing."""
        self._hook.remove()
        for schedule in self._schedules:
            schedule.ties -= 1
        self._schedules = []
