"""The Gumbel quantizer against the original's formulas, with its noise taken from the same generator."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vq_components import GumbelQuantizer

EMBED, PROJ = torch.Size([7, 3]), torch.Size([7, 4, 1, 1])


def double(**settings):
    return GumbelQuantizer(7, 3, in_channels=4, **settings).double()


def original(quantizer, z, *, temperature, hard):
    """As the VQ-GAN code writes it, in training: dense, with the noise drawn first."""
    logits = z @ quantizer.proj.weight.T + quantizer.proj.bias
    noise = -torch.empty_like(logits).exponential_().log()
    soft = ((logits + noise) / temperature).softmax(dim=1)
    indices = soft.argmax(dim=1)
    weights = F.one_hot(indices, 7).double() - soft.detach() + soft if hard else soft
    p = logits.softmax(dim=1)
    kl = (p * torch.log(p * 7 + 1e-10)).sum(dim=1).mean()
    return weights @ quantizer.embed.weight, indices, kl


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_training_equals_the_original_value_and_gradient(hard, temperature):
    quantizer = double(straight_through=hard, kl_weight=0.5)
    quantizer.temperature = temperature  # as a schedule sets it
    z = torch.randn(20, 4, dtype=torch.float64, requires_grad=True)
    own = z.detach().clone().requires_grad_()
    gradients = []
    for forward, x in ((quantizer, z), (None, own)):
        torch.manual_seed(3)
        quantizer.zero_grad()
        if forward is not None:
            out = forward(x)
            quantized, loss = out.quantized, out.loss
        else:
            quantized, indices, kl = original(quantizer, x, temperature=temperature, hard=hard)
            loss = 0.5 * kl
        (loss + quantized.square().sum()).backward()
        gradients.append([x.grad, *(parameter.grad.clone() for parameter in quantizer.parameters())])
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.quantized, quantized)
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(out.terms["kl"], kl.detach().float())
    torch.testing.assert_close(gradients[0], gradients[1])


def test_eval_takes_the_likeliest_and_draws_nothing():
    quantizer = double().eval()
    z = torch.randn(20, 4, dtype=torch.float64)
    state = torch.get_rng_state()
    out = quantizer(z)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(out.indices, quantizer.proj(z).argmax(dim=1))
    assert torch.equal(out.quantized, quantizer.embed.weight[out.indices])
    assert torch.equal(quantizer.train().encode(z), out.indices)


def test_samples_follow_the_softmax():
    quantizer = double()
    with torch.no_grad():
        quantizer.proj.weight.zero_()
        quantizer.proj.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.1, 0.1, 0.15, 0.05]).log())
    counts = quantizer(torch.zeros(20000, 4)).indices.bincount(minlength=7) / 20000
    torch.testing.assert_close(counts, quantizer.proj.bias.exp().float(), rtol=0, atol=0.015)


def test_uniform_logits_have_no_divergence():
    quantizer = double()
    nn.init.zeros_(quantizer.proj.weight)
    nn.init.zeros_(quantizer.proj.bias)
    assert quantizer(torch.randn(5, 4)).terms["kl"].abs() < 1e-6


def test_the_originals_checkpoint_loads_with_its_convolution():
    given = {"proj.weight": torch.randn(PROJ), "proj.bias": torch.randn(7), "embed.weight": torch.randn(EMBED)}
    quantizer = GumbelQuantizer(7, 3, in_channels=4).eval()
    shapes = {name: tensor.shape for name, tensor in given.items()}
    model = nn.ModuleDict({"quantize": quantizer})
    model.load_state_dict({f"quantize.{name}": tensor for name, tensor in given.items()}, strict=True)
    assert {name: tensor.shape for name, tensor in given.items()} == shapes
    z = torch.randn(2, 4, 5, 3)
    logits = F.conv2d(z, given["proj.weight"], given["proj.bias"])
    assert torch.equal(quantizer(z).indices, logits.argmax(dim=1))
    with pytest.raises(RuntimeError, match=r"size mismatch for proj\.weight"):
        quantizer.load_state_dict({**given, "proj.weight": torch.randn(7, 4, 3, 3)})


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"in_channels": 0}])
def test_settings_out_of_range_raise(settings):
    given = {"in_channels": 4, "temperature": 1.0, **settings}
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        GumbelQuantizer(7, 3, **given)
    assert str(error.value) == (
        f"GumbelQuantizer needs positive sizes and a positive temperature, but got codebook_size=7, codebook_dim=3, "
        f"in_channels={given['in_channels']}, temperature={given['temperature']}."
    )


@pytest.mark.parametrize("training", [True, False])
def test_the_output_is_the_entry_whatever_products_are_rounded_to(training):
    torch.manual_seed(0)
    vq = GumbelQuantizer(256, 32, in_channels=16).train(training)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        quantized, indices, _, _ = vq(torch.randn(2, 16, 8, 8))
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(vq.decode(indices), quantized)
