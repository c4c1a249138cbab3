"""What a failed check says."""

import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

RAISED = "raised "
_SEVERAL = 4  # checks that end in one exception: more likely one mistake than several


class CheckFailure(AssertionError):
    """One broken rule: which check found it, the rule, what was measured, and the usual cause.

    Args:
        check: name of the check.
        rule: what must hold.
        measured: the numbers that show that it does not.
        cause: where to look first.
    """

    def __init__(self, check: str, *, rule: str, measured: str, cause: str) -> None:
        super().__init__(f"{check}\n  rule:        {rule}\n  measured:    {measured}\n  usual cause: {cause}")
        self.check = check
        self.rule = rule
        self.measured = measured
        self.cause = cause

    def __reduce__(self) -> tuple[Any, ...]:
        parts = {"rule": self.rule, "measured": self.measured, "cause": self.cause}
        return partial(CheckFailure, self.check, **parts), ()


class CheckError(AssertionError):
    """All broken rules of one object.

    Args:
        name: what was checked.
        failures: at least one; the first ones may be the cause of the others.
        total: number of checks that apply.
        unrun: number of those that were not run, since the object could not be called as declared.
        left_out: names of checks that were left out, and what each needs.
    """

    def __init__(
        self,
        name: str,
        failures: Sequence[CheckFailure],
        *,
        total: int,
        unrun: int = 0,
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        shared = _shared(failures)
        listed = "\n\n".join(str(failure) for failure in failures if failure.measured != shared)
        summary = f"{name} fails {len(failures)} of {total} checks."
        if unrun:
            summary = f"{name} cannot be called as declared: {unrun} of {total} checks were not run."
        elif len(failures) >= _SEVERAL:
            summary += " Begin at the top: one mistake often breaks several rules, the plainest of which come first."
        parts = [summary, _told_once(failures, shared), listed, _left_out(left_out or {})]
        super().__init__("\n\n".join(filter(None, parts)))
        self.name = name
        self.failures = tuple(failures)
        self.total = total
        self.unrun = unrun
        self.left_out = dict(left_out or {})


class CheckReport(NamedTuple):
    """What is known of an object that fails nothing; printed, it tells what was not asked too.

    Args:
        name: what was checked.
        passed: names of the checks that ran, without those that failed as expected.
        left_out: names of checks that were left out, and what each needs.
    """

    name: str
    passed: tuple[str, ...]
    left_out: dict[str, str]

    def __str__(self) -> str:
        summary = f"{self.name} passes {len(self.passed)} checks."
        return "\n\n".join(filter(None, [summary, _left_out(self.left_out)]))


def _left_out(left_out: Mapping[str, str]) -> str:
    """One line for each thing that is needed."""
    checks: dict[str, list[str]] = {}
    for name, needs in left_out.items():
        checks.setdefault(needs, []).append(name)
    lines = [f"  {', '.join(names)}: needs {needs}" for needs, names in checks.items()]
    return "\n".join(["Left out:", *lines] if lines else [])


def told(error: Exception) -> str:
    """An exception in one line, with the last place outside of this kit and torch."""
    lines = str(error).strip().splitlines() or [""]
    kit, outside = Path(__file__).parent, [f"{name}torch{name}" for name in "/\\"]
    places = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).parent != kit and not any(part in frame.filename for part in outside)
    ]
    where = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    return f"{RAISED}{type(error).__name__}: {lines[0][:300]}{where}"


def _shared(failures: Sequence[CheckFailure]) -> str | None:
    """The exception that ended several checks, if one did."""
    raised = [failure.measured for failure in failures if failure.measured.startswith(RAISED)]
    most, times = max(Counter(raised).items(), key=lambda item: item[1], default=("", 0))
    return most if times >= _SEVERAL else None


def _told_once(failures: Sequence[CheckFailure], shared: str | None) -> str:
    """One paragraph on all checks that ended in the same exception."""
    names = [failure.check for failure in failures if failure.measured == shared]
    if not names:
        return ""
    return (
        f"{len(names)} of them end in the same error: {', '.join(names)}\n  measured:    {shared}\n"
        f"  usual cause: the line that is named; or traits or an adapter that do not fit the object"
    )


class Broken(Exception):
    """What a check measured where its rule does not hold."""


def fail(measured: str) -> None:
    """Ends a check: its rule does not hold, as ``measured`` shows."""
    raise Broken(measured)


def attempt(what: str, call: Callable[[], Any]) -> Any:
    """What a call returns; ends a check where it raises, with ``what`` was called."""
    try:
        return call()
    except Exception as error:
        raise Broken(f"{what}: {told(error)}") from error


def require(holds: bool, measured: str) -> None:
    """Ends a check unless ``holds``."""
    if not holds:
        fail(measured)


def refused(call: Callable[[], object], *errors: type[Exception]) -> bool:
    """Whether a call raises one of the errors."""
    try:
        call()
    except errors:
        return True
    return False


def require_refused(cases: Mapping[str, Callable[[], object]]) -> None:
    """Ends a check unless every call raises a ValueError or a TypeError; the keys say what it was given."""
    for what, call in cases.items():
        require(refused(call, ValueError, TypeError), f"{what} is taken")
