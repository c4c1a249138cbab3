"""All checks of an object at once, or each as a test."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from . import _pytest
from ._engine import Kind
from ._loss_adapters import LossAdapter, LossTraits
from ._loss_subject import LOSS, LossSubject
from ._prior_subject import PRIOR, PriorSubject, PriorTraits
from ._quantizer_subject import QUANTIZER, QuantizerSubject
from ._quantizer_traits import QuantizerTraits
from ._report import CheckReport
from ._tokenizer import TOKENIZER, TokenizerAdapter, TokenizerSubject, TokenizerTraits

_KINDS: dict[type, Kind[Any]] = {
    QuantizerSubject: QUANTIZER,
    LossSubject: LOSS,
    PriorSubject: PRIOR,
    TokenizerSubject: TOKENIZER,
}


def check_quantizer(
    quantizer: Any,
    *,
    name: str | None = None,
    adapter: Any = None,
    traits: Any = None,
    expected_failures: Mapping[str, str] | None = None,
) -> CheckReport:
    """Runs every check that applies to a quantizer, on two cores where a fork of this process can have the second.

    Args:
        quantizer: a module, which is copied for every check and stays as it is; a function that builds one; or a
            :class:`QuantizerSubject`, which brings the other arguments with it.
        name: what the report calls it.
        adapter: ``(module, z) -> (quantized, indices, loss)``, or a :class:`QuantizerAdapter`, where the order and
            names of what the module returns do not tell.
        traits: what it declares, a :class:`QuantizerTraits`; read from its attributes unless told.
        expected_failures: names of checks that must fail, each with the reason.

    Returns:
        The names of the checks that passed, and of those that were left out since nothing was declared for them; print
        it to see what was not asked.

    Raises:
        CheckError: if a check fails, with all of them; also if one passes that is expected to fail.
        ValueError: if ``expected_failures`` names a check that does not exist.

    Example:
        >>> from vq_components import VectorQuantizer
        >>> print(check_quantizer(VectorQuantizer(16, 4)))  # doctest: +SKIP
    """
    subject = QUANTIZER.wrap(
        quantizer, **_given(name=name, adapter=adapter, traits=traits, expected_failures=expected_failures)
    )
    return QUANTIZER.run_all(subject, name=subject.name, expected_failures=subject.expected_failures)


def check_tokenizer(
    model: Any,
    *,
    name: str | None = None,
    adapter: TokenizerAdapter | None = None,
    traits: TokenizerTraits | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> CheckReport:
    """Runs every check that applies to an image tokenizer: encoder, quantizer and decoder as one.

    Args:
        model: a module, which is copied for every check; or a :class:`TokenizerSubject`.
        name: as in :func:`check_quantizer`.
        adapter: how to use it; needed unless it has ``encode`` and ``decode`` and returns ``(reconstructions, indices,
            loss, ...)``, or a dict or pair in which these are told apart by shape and type.
        traits: what it declares; needed unless a subject brings it.
        expected_failures: as in :func:`check_quantizer`.

    Returns:
        As :func:`check_quantizer`.

    Raises:
        CheckError: if a check fails, with all of them.
        ValueError: if ``expected_failures`` names a check that does not exist.
    """
    subject = TOKENIZER.wrap(
        model, **_given(name=name, adapter=adapter, traits=traits, expected_failures=expected_failures)
    )
    return TOKENIZER.run_all(subject, name=subject.name, expected_failures=subject.expected_failures)


def check_loss(
    loss: Any,
    *,
    name: str | None = None,
    adapter: LossAdapter | None = None,
    traits: LossTraits | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> CheckReport:
    """Runs every check that applies to a VQ-GAN loss: both players, their starts, weights and values.

    Args:
        loss: a module, which is copied for every check; or a :class:`LossSubject`.
        name: as in :func:`check_quantizer`.
        adapter: how to call it; needed unless it has ``generator_loss`` and ``discriminator_loss``, or is called as the
            original's is.
        traits: what it declares; read from its attributes unless told.
        expected_failures: as in :func:`check_quantizer`.

    Returns:
        As :func:`check_quantizer`.

    Raises:
        CheckError: if a check fails, with all of them.
        ValueError: if ``expected_failures`` names a check that does not exist.
    """
    subject = LOSS.wrap(loss, **_given(name=name, adapter=adapter, traits=traits, expected_failures=expected_failures))
    return LOSS.run_all(subject, name=subject.name, expected_failures=subject.expected_failures)


def check_prior(
    prior: Any,
    *,
    name: str | None = None,
    adapter: Any = None,
    traits: PriorTraits | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> CheckReport:
    """Runs every check that applies to an autoregressive prior: its logits, its cache, and its samples.

    Args:
        prior: a module, which is copied for every check; or a :class:`PriorSubject`.
        name: as in :func:`check_quantizer`.
        adapter: ``(module, tokens, values) -> logits``, or a :class:`PriorAdapter` that also says how to sample; needed
            unless the prior is this package's.
        traits: what it declares; needed unless it is a :class:`~vq_components.MinGPT`.
        expected_failures: as in :func:`check_quantizer`.

    Returns:
        As :func:`check_quantizer`.

    Raises:
        CheckError: if a check fails, with all of them.
        ValueError: if ``expected_failures`` names a check that does not exist.
    """
    subject = PRIOR.wrap(
        prior, **_given(name=name, adapter=adapter, traits=traits, expected_failures=expected_failures)
    )
    return PRIOR.run_all(subject, name=subject.name, expected_failures=subject.expected_failures)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def parametrize_with_checks(
    subjects: Iterable[Any], *, expected_failures: Mapping[str, str] | None = None
) -> Callable[..., Any]:
    """Makes one pytest test of each object and check; the decorated function is called with both.

    Test ids are ``name-check``. Checks that do not apply are left out.

    Args:
        subjects: :class:`QuantizerSubject`, :class:`TokenizerSubject`, :class:`LossSubject` or :class:`PriorSubject`;
            a module alone is taken for a quantizer.
        expected_failures: names of checks that fail for every object, each with the reason: a strict xfail, which
            becomes an error when the check passes. Those of single objects are given to their subjects.

    Raises:
        ImportError: if pytest is not installed.
        ValueError: if ``expected_failures`` names a check that does not exist.

    Example:
        In a test file::

            @parametrize_with_checks([QuantizerSubject(MyQuantizer(16, 4), name="mine")])
            def test_quantizer(subject, check):
                check(subject)
    """
    pairs = [_with_kind(subject) for subject in subjects]
    return _pytest.parametrize(pairs, expected_failures or {})


def traits_of(quantizer: Any, *, adapter: Any = None) -> QuantizerTraits:
    """The traits that are taken for a quantizer if none are given: a start for one's own.

    Args:
        quantizer: as :func:`check_quantizer` takes it.
        adapter: likewise.

    Raises:
        TypeError: if its number of channels is not to be found.

    Example:
        >>> from vq_components import VectorQuantizer
        >>> traits_of(VectorQuantizer(16, 4)).commitment_weight
        0.25
    """
    return QuantizerSubject(quantizer, adapter=adapter).traits


def checks_of(subject: Any) -> dict[str, Callable[..., None]]:
    """Names and functions of the checks that apply, to be called with the subject one by one.

    Args:
        subject: as :func:`parametrize_with_checks` takes them.
    """
    kind, subject = _with_kind(subject)
    return {check.name: check.function for check in kind.selected(subject)}


def _with_kind(subject: Any) -> tuple[Kind[Any], Any]:
    if type(subject) in _KINDS:
        return _KINDS[type(subject)], subject
    if isinstance(subject, nn.Module) or callable(subject):
        return QUANTIZER, QUANTIZER.wrap(subject)
    raise TypeError(
        f"parametrize_with_checks takes subjects or quantizers, but got {type(subject).__name__}. "
        f"Wrap it, for example in QuantizerSubject(...)."
    )
