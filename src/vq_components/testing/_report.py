"""What a failed check says."""

from collections.abc import Callable, Mapping, Sequence


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
        listed = "\n\n".join(str(failure) for failure in failures)
        super().__init__(f"{name} fails {len(failures)} of {total} checks.\n\n{listed}")
        self.name = name
        self.failures = tuple(failures)
        self.total = total


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
