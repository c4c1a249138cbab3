"""Every check of every object as a test of its own."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ._engine import Kind, check_expected


def parameters(subjects: Iterable[tuple[Kind[Any], Any]], expected_failures: Mapping[str, str]) -> list[Any]:
    """``pytest.param(subject, check)`` with an id and, where failure is expected, a strict xfail mark."""
    import pytest

    result, names = [], dict.fromkeys(expected_failures)
    known: dict[str, None] = {}
    for kind, subject in subjects:
        expected = {**expected_failures, **subject.expected_failures}
        check_expected(subject.expected_failures, kind.checks)
        known |= dict.fromkeys(kind.checks)
        for check in kind.selected(subject):
            reason = expected.get(check.name)
            marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True)]
            label = f"{subject.name}-{check.name.removeprefix('check_')}"
            result.append(pytest.param(subject, check.function, id=label, marks=marks))
    check_expected(dict.fromkeys(names, ""), known)
    return result


def parametrize(subjects: Iterable[tuple[Kind[Any], Any]], expected_failures: Mapping[str, str]) -> Callable[..., Any]:
    """The decorator."""
    import pytest

    decorator: Callable[..., Any] = pytest.mark.parametrize(
        ("subject", "check"), parameters(subjects, expected_failures)
    )
    return decorator
