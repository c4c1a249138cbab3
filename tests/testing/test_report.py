"""What the runners raise, expected failures, and the pytest integration."""

import dataclasses
import subprocess
import sys
import textwrap
import unittest

import pytest
import torch
from torch import nn

from vq_components import EMAVectorQuantizer, testing
from vq_components.testing import CheckError, CheckFailure, QuantizerSubject, QuantizerTraits, parametrize_with_checks

TRAITS = QuantizerTraits(dim=3, codebook_size=8, learns=False, half=False)


class Flat(nn.Module):
    """Indices of a fixed codebook, with the wrong shape."""

    def __init__(self):
        super().__init__()
        self.register_buffer("entries", torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, z):
        if z.shape[1] != 3:
            raise ValueError("wrong number of channels")
        moved = z.movedim(1, -1)
        indices = (moved.reshape(-1, 3).nan_to_num() @ self.entries.T - self.entries.square().sum(dim=1) / 2).argmax(
            dim=1
        )
        entries = self.entries[indices].view(moved.shape).movedim(-1, 1)
        return z + (entries - z).detach(), indices


def test_one_error_lists_all_failures():
    small = QuantizerTraits(dim=3, codebook_size=4, learns=False, half=False)
    with pytest.raises(CheckError) as error:
        testing.check_quantizer(Flat(), name="flat", traits=small)
    assert {failure.check for failure in error.value.failures} == {
        "check_shapes",
        "check_index_range",
        "check_not_finite",
    }
    text = str(error.value)
    assert text.startswith(f"flat fails 3 of {error.value.total} checks.\n\ncheck_")
    assert "  measured:    indices have shape (3,) for input" not in text
    for failure in error.value.failures:
        assert str(failure) in text
        assert (
            f"  rule:        {failure.rule}\n  measured:    {failure.measured}\n  usual cause: {failure.cause}" in text
        )


def test_what_cannot_be_called_is_told_alone():
    wrong = QuantizerTraits(dim=4, codebook_size=8, learns=False, half=False)
    with pytest.raises(CheckError) as error:
        testing.check_quantizer(Flat(), name="flat", traits=wrong)
    failures, total = error.value.failures, error.value.total
    assert [failure.check for failure in failures] == ["check_quantizer_call"]
    assert str(error.value).startswith(f"flat cannot be called as declared: {total - 1} of {total} checks were not run")
    assert (
        "for input (4, 4): raised ValueError: wrong number of channels (test_report.py, line " in failures[0].measured
    )


@pytest.mark.parametrize(
    ("adapter", "measured"),
    [
        (lambda module, z: module(z)[:1], "the adapter returns 1 values"),
        (lambda module, z: (*module(z)[:1], z.mean(), module(z)[1]), r"indices are torch\.float32 \(\)"),
        (lambda module, z: (*module(z), z), r"the loss is torch\.float32 \(4, 3\)"),
        (lambda module, z: module(z)[::-1], r"quantized is torch\.int64 \(4,\)"),
    ],
)
def test_an_adapter_that_does_not_fit_is_told(adapter, measured):
    with pytest.raises(CheckFailure, match=measured):
        testing.check_quantizer_call(Flat(), traits=TRAITS, adapter=adapter)


@pytest.mark.parametrize("loss", [(), (None,), (0.0,)])
def test_no_loss_is_a_loss_of_zero(loss):
    testing.check_shapes(
        Flat(), traits=dataclasses.replace(TRAITS, space=(0,)), adapter=lambda module, z: (*module(z), *loss)
    )


def test_an_error_of_many_checks_is_told_once():
    class Trained(Flat):
        def forward(self, z):
            if not self.training:
                raise ValueError("only in training")
            return super().forward(z)

    with pytest.raises(CheckError) as error:
        testing.check_quantizer(Trained(), name="flat", traits=TRAITS)
    text, failures = str(error.value), error.value.failures
    shared = [failure for failure in failures if "raised ValueError: only in training (test_rep" in failure.measured]
    assert len(shared) > 4
    assert text.count("only in training") == 1
    assert f"{len(shared)} of them end in the same error: {', '.join(failure.check for failure in shared)}\n" in text
    assert "traits or an adapter that do not fit the object" in text
    for failure in failures:
        assert failure in shared or str(failure) in text


def test_a_clean_run_tells_what_was_left_out():
    expected = {"check_shapes": "flat by design", "check_index_range": "on purpose", "check_not_finite": "likewise"}
    small = dataclasses.replace(TRAITS, codebook_size=4)
    report = testing.check_quantizer(Flat(), name="flat", traits=small, expected_failures=expected)
    assert not set(report.passed) & set(expected)
    assert "check_layouts" in report.passed
    assert str(report).startswith(f"flat passes {len(report.passed)} checks.\n\nLeft out:\n")
    assert "  check_mask_output, check_mask_equals_cutting_out, check_mask_of_nothing: needs mask=True" in str(report)


def test_few_equal_errors_are_told_each():
    failures = [CheckFailure(name, rule=name, measured="raised KeyError: 1", cause="a key") for name in "abc"]
    text = str(CheckError("few", failures, total=9))
    assert all(str(failure) in text for failure in failures)
    assert "same error" not in text


def test_a_foreign_prior_needs_an_adapter():
    with pytest.raises(TypeError, match=r"How a Linear is used is not known.*Pass adapter="):
        testing.check_prior(nn.Linear(2, 2), traits=testing.PriorTraits(vocab_size=2, length=2))


def test_a_codebook_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match=r"at least 4 entries .* but got 2\. Pass"):
        testing.check_quantizer(Flat(), traits=QuantizerTraits(dim=3, codebook_size=2))


def test_an_expected_failure_must_fail():
    testing.check_quantizer(Flat(), traits=TRAITS, expected_failures={"check_shapes": "flat by design"})
    with pytest.raises(CheckError) as error:
        testing.check_quantizer(
            Flat(), traits=TRAITS, expected_failures={"check_shapes": "flat", "check_permutation": "a guess"}
        )
    (failure,) = error.value.failures
    assert failure.measured == "it passed, though it was expected to fail: a guess"


def test_unknown_checks_are_refused():
    with pytest.raises(ValueError, match="do not exist: check_shape"):
        testing.check_quantizer(Flat(), traits=TRAITS, expected_failures={"check_shape": "a typo"})
    with pytest.raises(ValueError, match=r"do not exist: shapes\. Did you mean check_shapes\?"):
        testing.check_quantizer(Flat(), traits=TRAITS, expected_failures={"shapes": "a typo"})
    with pytest.raises(ValueError, match="do not exist: check_shape"):
        parametrize_with_checks([QuantizerSubject(Flat(), traits=TRAITS)], expected_failures={"check_shape": "a typo"})


def test_a_check_that_does_not_apply_is_skipped():
    with pytest.raises(unittest.SkipTest, match="check_mask_output does not apply to this quantizer"):
        testing.check_mask_output(Flat(), traits=TRAITS)


def test_an_error_inside_the_object_is_a_failure():
    class Raises(Flat):
        def forward(self, z):
            raise RuntimeError("something inside")

    with pytest.raises(CheckFailure) as failure:
        testing.check_deterministic(Raises(), traits=TRAITS)
    measured = failure.value.measured
    assert measured.startswith("raised RuntimeError: something inside (test_report.py, line ")


def test_pytest_gets_readable_ids_and_strict_xfails():
    mark = parametrize_with_checks(
        [QuantizerSubject(Flat(), name="flat", traits=TRAITS, expected_failures={"check_shapes": "flat by design"})]
    )
    parameters = mark.mark.args[1]
    ids = {parameter.id: parameter.marks for parameter in parameters}
    assert "flat-permutation" in ids
    assert "flat-mask_output" not in ids
    (xfail,) = ids["flat-shapes"]
    assert (xfail.name, xfail.kwargs) == ("xfail", {"reason": "flat by design", "strict": True})


def test_something_else_is_refused():
    with pytest.raises(TypeError, match="takes subjects or quantizers, but got int"):
        parametrize_with_checks([3])


def test_a_function_that_builds_is_taken():
    subject = QuantizerSubject(lambda: EMAVectorQuantizer(8, 3))
    assert subject.name == "EMAVectorQuantizer"
    testing.check_deterministic(subject)


def test_an_object_may_declare_itself():
    class Declares(Flat):
        check_traits = TRAITS

    assert testing.traits_of(Declares()) is TRAITS


def test_nothing_but_torch_is_imported():
    program = """
        import sys, vq_components.testing
        extra = {"pytest", "hypothesis", "lpips", "torchvision"} & set(sys.modules)
        assert not extra, extra
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
