"""The contract of every quantizer, part 2: values, gradients, and what a forward leaves alone."""

import pytest
import torch

from vq_components import QuantizerOutput, functional

TERMS = {"commitment", "codebook", "perplexity", "usage"}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("started", [True, False])
def test_one_named_result_in_every_mode(build, build_started, training, started):
    """Defect 7."""
    quantizer = (build_started if started else build)().train(training)
    for mask in (None, torch.ones(2, 3, 3, dtype=torch.bool)):
        out = quantizer(torch.randn(2, 4, 3, 3), mask)
        assert type(out) is QuantizerOutput
        assert out.terms.keys() == TERMS
        for name, term in (*out.terms.items(), ("loss", out.loss)):
            assert term.shape == (), name
            assert term.dtype == torch.float32, name
        assert not any(term.requires_grad for term in out.terms.values())
        assert not out.indices.requires_grad


def test_terms_are_float32_for_float64_too(build_started):
    out = build_started()(torch.randn(2, 4, 3, 3, dtype=torch.float64))
    assert {name: term.dtype for name, term in out.terms.items()} == dict.fromkeys(TERMS, torch.float32)


@pytest.mark.parametrize("training", [True, False])
def test_terms_say_what_they_are_called(build_started, training):
    quantizer = build_started().train(training)
    z = torch.randn(2, 4, 3, 3)
    quantized, indices, _, terms = quantizer(z)
    error = (z - quantized).square().mean()
    torch.testing.assert_close(terms["commitment"], error)
    torch.testing.assert_close(terms["codebook"], error)
    torch.testing.assert_close(terms["perplexity"], functional.perplexity(indices, 16))
    torch.testing.assert_close(terms["usage"], functional.codebook_usage(indices, 16))
    torch.testing.assert_close(terms["usage"], torch.tensor(len(indices.unique()) / 16))


def test_the_output_is_the_entry_bit_for_bit(build):
    """Defect 15: in every training forward until the next update, the first one included, and in eval."""
    quantizer = build()
    for step in range(6):
        quantizer.train(step != 3)
        out = quantizer(torch.randn(3, 4, 5))
        assert torch.equal(quantizer.decode(out.indices), out.quantized)
        assert torch.equal(quantizer.codebook[out.indices].movedim(-1, 1), out.quantized)


@pytest.mark.parametrize("training", [True, False])
def test_each_vector_gets_the_nearest_entry(build_started, reference, training):
    quantizer = build_started().train(training)
    quantizer.update_()
    z = torch.randn(50, 4)
    expected = reference.nearest(z.double().numpy(), quantizer.codebook.detach().double().numpy())
    assert quantizer(z).indices.tolist() == expected.tolist()


@pytest.mark.parametrize("training", [True, False])
def test_a_vector_is_quantized_alike_in_any_batch(build_started, training):
    quantizer = build_started().train(training)
    quantizer.update_()
    z = torch.randn(40, 4)
    together = quantizer(z).indices
    assert torch.equal(torch.cat([quantizer(row).indices for row in z.split(1)]), together)
    assert torch.equal(quantizer(z.flip(0)).indices.flip(0), together)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("weight", [0.0, 0.25, 3.0])
def test_the_gradient_is_the_estimators_plus_the_commitments(build_started, training, weight):
    """Defect 1: the commitment term's closed form, scaled by its own weight and nothing else."""
    quantizer = build_started(commitment_weight=weight).train(training)
    z = torch.randn(2, 4, 5, 3, requires_grad=True)
    quantized, _, loss, _ = quantizer(z)
    gradient = torch.randn_like(z)

    (from_output,) = torch.autograd.grad(quantized, z, gradient, retain_graph=True)
    (from_loss,) = torch.autograd.grad(loss, z)

    assert torch.equal(from_output, gradient)
    torch.testing.assert_close(from_loss, weight * 2 * (z - quantized).detach() / z.numel())


def test_the_output_moves_no_codebook(build_started):
    """Only the codebook term does: the decoder's gradient goes to the encoder."""
    quantizer = build_started(commitment_weight=0.0)
    z = torch.randn(2, 4, 5, requires_grad=True)
    quantizer(z).quantized.sum().backward()
    assert quantizer.codebook.grad is None
    with torch.no_grad():
        quantizer.commitment_weight = 1.0
    assert quantizer(z.detach()).quantized.requires_grad is False


def test_another_estimator_changes_the_gradient_alone(build_started, build):
    def half(z, quantized):
        assert z.shape == quantized.shape
        assert not quantized.requires_grad
        return functional.straight_through(0.5 * z, quantized)

    plain, other = build_started(), build(estimator=half)
    other.load_state_dict(plain.state_dict())
    z = torch.randn(2, 4, 5, requires_grad=True)
    expected, out = plain(z), other(z)
    assert torch.equal(out.quantized, expected.quantized)
    assert torch.equal(torch.autograd.grad(out.quantized.sum(), z)[0], torch.full_like(z, 0.5))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_the_input_is_not_modified(build_started, training, masked):
    """Defect 14."""
    quantizer = build_started().train(training)
    z = torch.randn(2, 4, 5, requires_grad=True)
    mask = torch.rand(2, 5) > 0.5 if masked else None
    kept = [z.detach().clone(), mask.clone() if masked else None]
    out = quantizer(z, mask)
    (out.loss + out.quantized.sum()).backward()
    quantizer.encode(z, mask)
    quantizer.update_()
    quantizer(z.detach().double(), mask)
    quantizer.decode(out.indices).add_(1)  # nor is the codebook, by who changes the result
    assert torch.equal(z, kept[0])
    assert mask is None or torch.equal(mask, kept[1])


def test_changing_the_result_changes_no_codebook(build_started, state_of, differing):
    quantizer = build_started().eval()
    before = state_of(quantizer)
    with torch.no_grad():
        out = quantizer(torch.randn(2, 4, 5))
        out.quantized.fill_(7)
        out.indices.fill_(7)
        quantizer.decode(torch.zeros(2, 5, dtype=torch.int64)).fill_(7)
    assert not differing(quantizer, before)


@pytest.mark.parametrize("training", [True, False])
def test_a_forward_sets_no_attributes_and_prints_nothing(build, training, capfd):
    """Defect 14."""
    quantizer = build().train(training)

    def attributes():
        tables = ("_parameters", "_buffers", "_modules")
        return [
            {key: value for key, value in vars(module).items() if key not in tables}
            | {table: {name: id(item) for name, item in getattr(module, table).items()} for table in tables}
            for module in quantizer.modules()
        ]

    before = attributes()
    for _ in range(3):
        out = quantizer(torch.randn(2, 4, 5, requires_grad=True))
        (out.loss + out.quantized.sum()).backward()
        quantizer.encode(torch.randn(2, 4, 5))
    assert attributes() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("started", [True, False])
def test_eval_changes_nothing(build, build_started, state_of, differing, started):
    quantizer = (build_started if started else build)().eval()
    before = state_of(quantizer)
    for z in (torch.randn(3, 4, 5), torch.full((3, 4, 5), torch.nan), torch.randn(0, 4, 5)):
        quantizer(z)
        quantizer(z, torch.rand(z.shape[0], 5) > 0.5)
        quantizer.encode(z)
    assert not differing(quantizer, before)


@pytest.mark.parametrize("started", [True, False])
def test_encoding_and_decoding_change_nothing_in_training_either(build, build_started, state_of, differing, started):
    quantizer = (build_started if started else build)()
    before = state_of(quantizer)
    for z in (torch.randn(3, 4, 5), torch.full((3, 4, 5), torch.nan)):
        indices = quantizer.encode(z)
        quantizer.decode(indices)
        assert not indices.requires_grad
    assert not differing(quantizer, before)


@pytest.mark.parametrize("update", [False, True])
def test_two_forwards_then_one_backward(build_started, update):
    """Nothing keeps the codebook for the backward, so an update in between is no error."""
    quantizer = build_started()
    weight = torch.randn(4, 4, requires_grad=True)
    total = 0
    for _ in range(2):
        out = quantizer(torch.randn(6, 4) @ weight)
        total = total + out.loss + out.quantized.square().sum()
    if update:
        quantizer.update_()
        quantizer.set_codebook_(torch.randn(16, 4))
    total.backward()
    assert weight.grad.isfinite().all()


def test_the_gradient_is_that_of_the_forwards_own_codebook(build_started):
    quantizer = build_started()
    z = torch.randn(2, 6, 4, requires_grad=True)
    out = quantizer(z[0])
    quantizer(torch.randn(30, 4))  # applies what the first forward has counted
    out.loss.backward()
    torch.testing.assert_close(z.grad[0], 0.25 * 2 * (z[0] - out.quantized).detach() / z[0].numel())


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_has_a_second_derivative(build_started, training):
    quantizer = build_started(commitment_weight=0.7).double().train(training)
    z = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(quantizer(z).loss, z, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), z)
    torch.testing.assert_close(curvature, torch.full_like(z, 2 * 0.7 / z.numel()))
