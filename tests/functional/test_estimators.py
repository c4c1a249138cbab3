import pytest
import torch

from vq_components.functional import straight_through


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_value_is_the_entry_bit_for_bit(dtype):
    """``z + (quantized - z).detach()`` is not: 1e-3 is lost beside 1e8, and zeros lose their sign."""
    z = torch.tensor([1e4, 0.3, 1.0, 2.0], dtype=dtype, requires_grad=True)
    quantized = torch.tensor([1e-3, 1e4, -0.0, torch.nan], dtype=dtype)
    out = straight_through(z, quantized)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[quantized.element_size()]
    assert torch.equal(out.detach().view(bits), quantized.view(bits))


def test_the_result_is_a_new_tensor():
    z, quantized = torch.randn(3), torch.randn(3)
    before = quantized.clone()
    straight_through(z, quantized).add_(1)
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


def test_function_transforms():
    z, quantized, weight = torch.randn(6, 3), torch.randn(6, 3), torch.randn(6, 3)

    def loss(z, quantized, weight):
        return (straight_through(z, quantized) * weight).sum()

    assert torch.equal(torch.func.grad(loss)(z, quantized, weight), weight)
    assert torch.equal(torch.func.vmap(torch.func.grad(loss))(z, quantized, weight), weight)
    assert torch.equal(
        torch.func.vmap(straight_through, in_dims=(0, None))(z, quantized[0]), quantized[:1].expand(6, 3)
    )


def test_it_compiles_without_graph_breaks():
    compiled = torch.compile(straight_through, backend="aot_eager", fullgraph=True)
    z, quantized, gradient = torch.randn(5, requires_grad=True), torch.randn(5), torch.randn(5)
    out = compiled(z, quantized)
    out.backward(gradient)
    assert torch.equal(out, quantized)
    assert torch.equal(z.grad, gradient)


@pytest.mark.parametrize(
    ("quantized", "came"),
    [
        (torch.zeros(3, 1), "(3, 1) torch.float32"),  # would broadcast
        (torch.zeros(3, 2, dtype=torch.float64), "(3, 2) torch.float64"),
    ],
)
def test_pairs_that_do_not_fit_are_rejected(quantized, came):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        straight_through(torch.zeros(3, 2), quantized)
    assert str(error.value) == (
        f"straight_through needs two tensors of one shape and dtype, but got (3, 2) torch.float32 and {came}. "
        f"Convert quantized to z's."
    )
