import numpy as np
import pytest
import torch

from vq_components.functional import rotate, straight_through

either = pytest.mark.parametrize("estimator", [straight_through, rotate])


@either
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_value_is_the_entry_bit_for_bit(estimator, dtype):
    """``z + (quantized - z).detach()`` is not: 1e-3 is lost beside 1e8, and zeros lose their sign."""
    z = torch.tensor([1e4, 0.3, 1.0, 2.0], dtype=dtype, requires_grad=True)
    quantized = torch.tensor([1e-3, 1e4, -0.0, torch.nan], dtype=dtype)
    out = estimator(z, quantized)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[quantized.element_size()]
    assert torch.equal(out.detach().view(bits), quantized.view(bits))


@either
def test_the_result_is_a_new_tensor(estimator):
    z, quantized = torch.randn(3), torch.randn(3)
    before = quantized.clone()
    estimator(z, quantized).add_(1)
    assert torch.equal(quantized, before)


def test_the_gradient_passes_unchanged():
    z = torch.randn(4, 5, requires_grad=True)
    quantized = torch.randn(4, 5, requires_grad=True)
    gradient = torch.randn(4, 5)
    straight_through(z, quantized).backward(gradient)
    assert torch.equal(z.grad, gradient)
    assert quantized.grad is None


def test_the_gradient_is_that_of_the_identity():
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def identity(x):
        return straight_through(x, x.detach())

    assert torch.autograd.gradcheck(identity, z)
    assert torch.autograd.gradgradcheck(lambda x: identity(x).pow(3), z)


@either
def test_function_transforms(estimator):
    z, quantized, weight = torch.randn(6, 3), torch.randn(6, 3), torch.randn(6, 3)

    def loss(z, quantized, weight):
        return (estimator(z, quantized) * weight).sum()

    variable = z.clone().requires_grad_()
    loss(variable, quantized, weight).backward()
    torch.testing.assert_close(torch.func.grad(loss)(z, quantized, weight), variable.grad)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(z, quantized, weight), variable.grad)
    assert torch.equal(torch.func.vmap(estimator, in_dims=(0, None))(z, quantized[0]), quantized[:1].expand(6, 3))


@either
def test_it_compiles_without_graph_breaks(estimator):
    compiled = torch.compile(estimator, backend="aot_eager", fullgraph=True)
    z, quantized, gradient = torch.randn(5, requires_grad=True), torch.randn(5), torch.randn(5)
    out = compiled(z, quantized)
    out.backward(gradient)
    assert torch.equal(out, quantized)
    compiled_gradient, z.grad = z.grad, None
    estimator(z, quantized).backward(gradient)
    torch.testing.assert_close(compiled_gradient, z.grad)


def rotation_of(a, b):
    """The rotation in the plane of ``a`` and ``b`` that takes the direction of ``a`` to that of ``b``, in float64.

    By the angle in an orthonormal basis of that plane, not by reflections.
    """
    first = a / np.linalg.norm(a)
    second = b - (b @ first) * first
    second /= np.linalg.norm(second)
    angle = np.arctan2(b @ second, b @ first)
    plane = np.outer(first, first) + np.outer(second, second)
    turn = np.outer(second, first) - np.outer(first, second)
    return np.eye(len(a)) + (np.cos(angle) - 1) * plane + np.sin(angle) * turn


@pytest.mark.parametrize("dim", [2, 3, 16])
def test_the_jacobian_of_rotate_is_the_scaled_rotation(dim):
    z, quantized = torch.randn(dim, dtype=torch.float64), torch.randn(dim, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: rotate(x, quantized), z)
    rotation = rotation_of(z.numpy(), quantized.numpy())
    expected = rotation * np.linalg.norm(quantized) / np.linalg.norm(z)
    np.testing.assert_allclose(expected @ z.numpy(), quantized.numpy())  # the reference itself
    np.testing.assert_allclose(jacobian.numpy(), expected, atol=1e-12)


def test_rotate_turns_every_vector_of_a_batch_by_itself():
    z = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    quantized, gradient = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    rotate(z, quantized).backward(gradient)
    for i, j in np.ndindex(2, 3):
        a, b = z[i, j].detach().numpy(), quantized[i, j].numpy()
        expected = rotation_of(a, b).T @ gradient[i, j].numpy() * np.linalg.norm(b) / np.linalg.norm(a)
        np.testing.assert_allclose(z.grad[i, j].numpy(), expected)


def test_rotate_between_equal_vectors_is_the_identity_and_between_opposite_ones_a_reflection():
    z = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(5, 4, dtype=torch.float64)
    rotate(z, z.detach()).backward(gradient)
    torch.testing.assert_close(z.grad, gradient)
    z.grad = None
    rotate(z, -2 * z.detach()).backward(gradient)
    direction = torch.nn.functional.normalize(z.detach(), dim=1)
    along = (gradient * direction).sum(dim=1, keepdim=True) * direction
    torch.testing.assert_close(z.grad, 2 * (gradient - 2 * along))


@pytest.mark.parametrize("zero", ["z", "quantized", "both"])
def test_where_there_is_no_direction_rotate_passes_the_gradient_unchanged(zero):
    z = torch.zeros(2, 3) if zero != "quantized" else torch.randn(2, 3)
    quantized = torch.zeros(2, 3) if zero != "z" else torch.randn(2, 3)
    gradient = torch.randn(2, 3)
    z.requires_grad_()
    rotate(z, quantized).backward(gradient)
    assert torch.equal(z.grad, gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotate_computes_half_types_in_float32(dtype):
    """Squares of 1e3 overflow float16; the length of the vectors must not."""
    z, quantized, gradient = (1e3 * torch.randn(8, 4)).to(dtype), (1e3 * torch.randn(8, 4)).to(dtype), torch.randn(8, 4)
    half, full = z.clone().requires_grad_(), z.double().requires_grad_()
    rotate(half, quantized).backward(gradient.to(dtype))
    rotate(full, quantized.double()).backward(gradient.to(dtype).double())
    torch.testing.assert_close(half.grad, full.grad.to(dtype))


def test_rotate_refuses_a_scalar():
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        rotate(torch.tensor(1.0), torch.tensor(1.0))
    assert str(error.value) == ("rotate takes vectors along the last dimension, but got a scalar. Pass shape (..., D).")


@either
@pytest.mark.parametrize(
    ("quantized", "came"),
    [
        (torch.zeros(3, 1), "(3, 1) torch.float32"),  # would broadcast
        (torch.zeros(3, 2, dtype=torch.float64), "(3, 2) torch.float64"),
    ],
)
def test_pairs_that_do_not_fit_are_rejected(estimator, quantized, came):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        estimator(torch.zeros(3, 2), quantized)
    assert str(error.value) == (
        f"{estimator.__name__} needs two tensors of one shape and dtype, but got (3, 2) torch.float32 and {came}. "
        f"Convert quantized to z's."
    )
