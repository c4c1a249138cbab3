"""How a check becomes a public function, and how all checks of a kind are run."""

import contextlib
import difflib
import functools
import inspect
import logging
import unittest
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from ._processes import run_all_of
from ._report import Broken, CheckError, CheckFailure, CheckReport, told

Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """A check as the runner sees it."""

    name: str
    function: Callable[..., None]
    applies: Callable[[Subject], bool]
    needs: Callable[[Subject], str]
    rank: int


# A gate that is shut ends the run; what breaks a first or basic rule often breaks others; a long check takes seconds.
GATE, FIRST, BASIC, OTHER, LONG = range(5)


class Kind(Generic[Subject]):
    """All checks of one kind of object, in the order of their definition.

    Args:
        noun: what the objects are called; the name of a check's first argument.
        wrap: makes a subject of an object and keyword arguments; a subject stays as it is.
    """

    def __init__(self, noun: str, wrap: Callable[..., Subject]) -> None:
        self.noun = noun
        self.wrap = wrap
        self.checks: dict[str, Check[Subject]] = {}

    def check(
        self,
        *,
        rule: str,
        cause: str,
        applies: Callable[[Subject], bool] = lambda subject: True,
        needs: str | Callable[[Subject], str] = "",
        rank: int = OTHER,
    ) -> Callable[[Callable[[Subject], None]], Callable[..., None]]:
        """Makes a public check of a function of one subject; see any of them for how it is called.

        Where it does not apply, ``needs`` says what to declare for it, if a declaration may be all that is missing; a
        function of the subject leaves out what is there.
        """

        def decorate(body: Callable[[Subject], None]) -> Callable[..., None]:
            name = body.__name__

            @functools.wraps(body)
            def run(tested: Any, **options: Any) -> None:
                __tracebackhide__ = True  # what pytest shows is the check's own report
                subject = self.wrap(tested, **options)
                if not _applies(applies, subject):
                    raise unittest.SkipTest(f"{name} does not apply to this {self.noun}, as its traits say.")
                _run(body, subject, rule=rule, cause=cause)

            # What help() and editors show: the object, and the keywords that make a subject of it.
            run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
                [
                    inspect.Parameter(self.noun, inspect.Parameter.POSITIONAL_OR_KEYWORD),
                    *(inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None) for key in _OPTIONS),
                ]
            )
            self.checks[name] = Check(name, run, applies, needs if callable(needs) else lambda subject: needs, rank)
            return run

        return decorate

    def selected(self, subject: Subject) -> list[Check[Subject]]:
        """The checks that apply, those first whose failures explain others."""
        applying = [check for check in self.checks.values() if _applies(check.applies, subject)]
        return sorted(applying, key=lambda check: check.rank)

    def run_all(self, subject: Subject, *, name: str, expected_failures: Mapping[str, str]) -> CheckReport:
        """Runs every check that applies; raises one :class:`CheckError` with all failures."""
        __tracebackhide__ = True
        check_expected(expected_failures, self.checks)
        checks = self.selected(subject)
        tasks = [functools.partial(_outcome, check, subject, expected_failures.get(check.name)) for check in checks]
        gates = sum(check.rank == GATE for check in checks)
        for task in tasks[:gates]:
            failure = task()
            if failure is not None:
                raise CheckError(name, [failure], total=len(checks), unrun=len(checks) - 1)
        failures = [failure for failure in run_all_of(tasks[gates:]) if failure is not None]
        ran = [check.name for check in checks]
        # What does not apply, but might if something were declared.
        needs = {key: check.needs(subject) for key, check in self.checks.items() if key not in ran}
        left_out = {key: text for key, text in needs.items() if text}
        if failures:
            raise CheckError(name, failures, total=len(checks), left_out=left_out)
        return CheckReport(name, tuple(key for key in ran if key not in expected_failures), left_out)


def missing(*needs: tuple[Callable[[Any], bool], str]) -> Callable[[Any], str]:
    """Of several things that a check needs, those that are not there."""
    return lambda subject: ", and ".join(text for holds, text in needs if not holds(subject))


_OPTIONS = ("traits", "adapter")


def _applies(applies: Callable[[Any], bool], subject: Any) -> bool:
    """Whether a check is run; also where the object cannot even be asked, which the check then reports."""
    try:
        return applies(subject)
    except Exception:
        return True


def check_expected(expected_failures: Mapping[str, str], checks: Mapping[str, Any]) -> None:
    """Raises if a check that is expected to fail does not exist."""
    unknown = sorted(set(expected_failures) - set(checks))
    if unknown:
        near = [match for name in unknown for match in difflib.get_close_matches(f"check_{name}", checks, n=1)]
        meant = f" Did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"expected_failures names checks that do not exist: {', '.join(unknown)}.{meant}")


def _outcome(check: Check[Any], subject: Any, expected: str | None) -> CheckFailure | None:
    try:
        check.function(subject)
    except CheckFailure as failure:
        return None if expected is not None else failure
    if expected is None:
        return None
    return CheckFailure(
        check.name,
        rule="a check in expected_failures fails",
        measured=f"it passed, though it was expected to fail: {expected}",
        cause="the object has been repaired: take the check out of expected_failures",
    )


def _run(body: Callable[[Any], None], subject: Any, *, rule: str, cause: str) -> None:
    __tracebackhide__ = True
    try:
        with isolated():
            body(subject)
    except Broken as broken:
        raise CheckFailure(body.__name__, rule=rule, measured=str(broken), cause=cause) from None
    except Exception as error:
        # Not what the check measures, but what it ran into.
        hint = f"the error that is told; if that is what the rule is about: {cause}"
        raise CheckFailure(body.__name__, rule=rule, measured=told(error), cause=hint) from error


# No seed that a user takes: inputs drawn after it would be the rows of a codebook drawn after the same.
_SEED = 0x7E57_0C0D


@contextlib.contextmanager
def isolated(seed: int = 0) -> Iterator[None]:
    """A known random state, autograd on, one thread, no autocast, no logs; afterwards everything as it was.

    The tensors of a check are tiny: a second thread costs more than it brings.
    """
    threads, default = torch.get_num_threads(), torch.get_default_dtype()
    with _silent(), torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        torch.default_generator.manual_seed(_SEED + seed)
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(default)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """No logs: compilers tell their graphs there, hundreds of lines in the report of a test that fails."""
    trace, disabled = logging.getLogger("torch.__trace"), logging.root.manager.disable  # which no level turns off
    was, trace.disabled = trace.disabled, True
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)
        trace.disabled = was
