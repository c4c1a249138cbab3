"""What a failed check says."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

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


class CheckError(AssertionError):
    """All broken rules of one object.

    Args:
        name: what was checked.
        failures: at least one.
        total: number of checks that ran.
    """

    def __init__(self, name: str, failures: Sequence[CheckFailure], *, total: int) -> None:
        shared = _shared(failures)
        listed = "\n\n".join(str(failure) for failure in failures if failure.measured != shared)
        summary = f"{name} fails {len(failures)} of {total} checks."
        super().__init__("\n\n".join(filter(None, [summary, _told_once(failures, shared), listed])))
        self.name = name
        self.failures = tuple(failures)
        self.total = total


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
        f"  usual cause: the traits or the adapter do not fit the object, if it can be used at all"
    )


class Broken(Exception):
    """What a check measured where its rule does not hold."""


def fail(measured: str) -> None:
    """Ends a check: its rule does not hold, as ``measured`` shows."""
    raise Broken(measured)


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
