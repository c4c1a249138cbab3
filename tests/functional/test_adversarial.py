import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from vq_components.functional import _adversarial as adversarial
from vq_components.functional._adversarial import adaptive_weight

CAUSES = (
    "Likely causes: the layer is frozen, the decoder ran under torch.no_grad(), activation checkpointing with "
    "use_reentrant=True, or per-module sharding that replaced the parameter. Pass the weight that the decoder used in "
    "this step."
)


def entropy(logits, target):
    """Binary cross-entropy from probabilities, in float64."""
    probability = 1 / (1 + np.exp(-logits.double().numpy()))
    return np.mean(-np.log(probability if target else 1 - probability))


def hinge(logits, sign):
    return np.mean(np.maximum(0, 1 - sign * logits.double().numpy()))


REFERENCES = {
    "hinge": (lambda real, fake: (hinge(real, 1) + hinge(fake, -1)) / 2, lambda fake: -fake.double().numpy().mean()),
    "vanilla": (
        lambda real, fake: (entropy(real, True) + entropy(fake, False)) / 2,
        lambda fake: -fake.double().numpy().mean(),
    ),
    "non_saturating": (
        lambda real, fake: (entropy(real, True) + entropy(fake, False)) / 2,
        lambda fake: entropy(fake, True),
    ),
}
PAIRS = [
    (getattr(adversarial, f"{name}_discriminator_loss"), getattr(adversarial, f"{name}_generator_loss"), *references)
    for name, references in REFERENCES.items()
]
parametrize_pairs = pytest.mark.parametrize(
    ("discriminator_loss", "generator_loss", "reference_d", "reference_g"), PAIRS, ids=REFERENCES
)


@parametrize_pairs
def test_losses_have_the_values_of_their_formulas(discriminator_loss, generator_loss, reference_d, reference_g):
    real, fake = 2 * torch.randn(3, 1, 5, 4), 2 * torch.randn(2, 1, 7, 4)
    found_d, found_g = discriminator_loss(logits_real=real, logits_fake=fake), generator_loss(logits_fake=fake)
    assert found_d.shape == found_g.shape == ()
    assert found_d.item() == pytest.approx(reference_d(real, fake), rel=1e-6)
    assert found_g.item() == pytest.approx(reference_g(fake), rel=1e-6)


@parametrize_pairs
def test_each_player_pulls_the_logits_its_way(discriminator_loss, generator_loss, reference_d, reference_g):
    """A step against the gradient raises real and lowers fake logits, or, for the generator, raises fake ones."""
    real, fake = (torch.linspace(-0.9, 0.9, 5).requires_grad_() for _ in range(2))
    to_real, to_fake = torch.autograd.grad(discriminator_loss(logits_real=real, logits_fake=fake), (real, fake))
    (to_fool,) = torch.autograd.grad(generator_loss(logits_fake=fake), fake)
    assert (to_real < 0).all()
    assert (to_fake > 0).all()
    assert (to_fool < 0).all()


@parametrize_pairs
def test_half_precision_logits_are_computed_in_float32(discriminator_loss, generator_loss, reference_d, reference_g):
    """300 logits of 1000 sum up to more than float16 has."""
    for dtype in (torch.float16, torch.bfloat16):
        real, fake = torch.full((300,), -1000.0, dtype=dtype), torch.full((300,), 1000.0, dtype=dtype)
        loss = discriminator_loss(logits_real=real, logits_fake=fake)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(1000, rel=2e-3)
        assert generator_loss(logits_fake=-fake).item() == pytest.approx(1000, rel=1e-6)


@parametrize_pairs
def test_no_logits_give_zero(discriminator_loss, generator_loss, reference_d, reference_g):
    assert discriminator_loss(logits_real=torch.zeros(0, 1), logits_fake=torch.zeros(0, 1)) == 0
    assert generator_loss(logits_fake=torch.zeros(0, 1)) == 0


@parametrize_pairs
def test_losses_keep_float64_and_compile_as_one_graph(discriminator_loss, generator_loss, reference_d, reference_g):
    real, fake = torch.randn(2, 4, dtype=torch.float64)
    compiled = torch.compile(discriminator_loss, fullgraph=True, backend="eager")
    found = compiled(logits_real=real, logits_fake=fake)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, discriminator_loss(logits_real=real, logits_fake=fake))
    assert torch.compile(generator_loss, fullgraph=True, backend="eager")(logits_fake=fake).dtype == torch.float64


@parametrize_pairs
def test_real_and_fake_go_by_name_only(discriminator_loss, generator_loss, reference_d, reference_g):
    with pytest.raises(TypeError):
        discriminator_loss(torch.zeros(1), torch.zeros(1))


# --- adaptive_weight


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    weight = torch.randn(3, 4, requires_grad=True)
    x, y = torch.randn(2, 4, dtype=torch.float64).float()
    reconstruction, generator = (weight @ x).square().sum(), (weight @ y).sum()
    gradients = 2 * (weight @ x)[:, None] * x, y.expand(3, 4)
    expected = gradients[0].norm() / (gradients[1].norm() + 0.5)
    found = adaptive_weight(reconstruction, generator, weight, delta=0.5)
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad
    assert weight.grad is None
    (reconstruction + found * generator).backward()  # both graphs are still there


@pytest.mark.parametrize(
    ("pull", "push", "delta", "expected"),
    [
        (0.0, 0.0, 1e-6, 0.0),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 2.0, 1e-6, 0.0),
        (1e-3, 0.0, 1e-6, 100.0),
        (2.0, 0.0, 0.0, 100.0),
        (2.0, 4.0, 0.0, 0.5),
        (float("nan"), 1.0, 1e-6, 0.0),
        (1.0, float("nan"), 1e-6, 0.0),
        (float("inf"), 1.0, 1e-6, 0.0),
        (1.0, float("inf"), 1e-6, 0.0),
    ],
)
def test_adaptive_weight_is_always_finite(pull, push, delta, expected):
    weight = torch.ones(1, requires_grad=True)
    found = adaptive_weight((pull * weight).sum(), (push * weight).sum(), weight, max_weight=100.0, delta=delta)
    assert found.item() == expected


@pytest.mark.parametrize("reduce", [torch.mean, torch.sum])
def test_adaptive_weight_survives_a_float16_graph(reduce):
    """The gradient of a mean over 2**22 entries is below float16's range, that of their sum at a weight above it."""
    hidden, target = torch.rand(2, 2**22), torch.rand(2**22)

    def found(dtype):
        weight = torch.tensor([0.7, 0.2], dtype=dtype, requires_grad=True)
        output = (weight[:, None] * hidden.to(dtype)).sum(dim=0)
        reconstruction = reduce((output - target.to(dtype)).float().abs())
        return adaptive_weight(reconstruction, reduce(output.sigmoid().float()), weight)

    assert found(torch.float16).item() == pytest.approx(found(torch.float32).item(), rel=0.01)


def test_adaptive_weight_of_half_gradients_is_a_float32_norm():
    """The scaled norm of these gradients is not in float16's range."""
    weight = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float16, requires_grad=True)
    found = adaptive_weight((12 * weight).sum(), (3 * weight).sum(), weight, delta=0.0)
    assert found.dtype == torch.float32
    assert found == 4


@pytest.mark.parametrize("which", [0, 1])
def test_adaptive_weight_is_zero_for_an_infinite_gradient_of_a_finite_loss(which):
    weight = torch.ones(1, requires_grad=True)
    losses = [weight.sum(), weight.sum()]
    losses[which] = (weight - 1).sqrt().sum()
    assert adaptive_weight(*losses, weight) == 0


def test_adaptive_weight_takes_losses_of_one_entry_and_float64():
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    found = adaptive_weight((4 * weight).sum()[None], (2 * weight).sum(), weight, delta=0.0)
    assert found.dtype == torch.float64
    assert found.shape == ()
    assert found == 2


@pytest.mark.parametrize(
    ("case", "name", "reason"),
    [
        ("frozen", "reconstruction_loss", "last_layer does not require grad"),
        ("no_grad", "generator_loss", "generator_loss does not require grad"),
        ("elsewhere", "generator_loss", "last_layer is not in its graph"),
        ("reentrant", "reconstruction_loss", "last_layer is not in its graph"),
    ],
)
def test_adaptive_weight_says_why_there_is_no_gradient(case, name, reason):
    weight, x = torch.ones(2, requires_grad=case != "frozen"), torch.ones(2, requires_grad=True)
    good = (weight * x).sum()
    losses = {
        "frozen": lambda: (good, good),
        "no_grad": lambda: (good, good.detach()),
        "elsewhere": lambda: (good, x.sum()),
        "reentrant": lambda: (checkpoint(lambda y: weight * y, x, use_reentrant=True).sum(), good),
    }[case]()
    with pytest.raises(ValueError, match="The adaptive weight") as error:
        adaptive_weight(*losses, weight)
    assert str(error.value) == f"The adaptive weight needs the gradient of {name} at last_layer, but {reason}. {CAUSES}"


def test_adaptive_weight_works_with_checkpointing_that_keeps_the_graph():
    weight, x = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    loss = checkpoint(lambda y: weight * y, x, use_reentrant=False).sum()
    assert adaptive_weight(2 * loss, loss, weight, delta=0.0) == 2


def test_adaptive_weight_takes_one_number_and_a_tensor():
    weight = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="one number") as error:
        adaptive_weight(weight.sum(), weight, weight)
    assert str(error.value) == "generator_loss must be one number, but got shape (2,). Reduce it first."
    layer = torch.nn.Conv2d(1, 1, 1)
    with pytest.raises(TypeError, match="last_layer") as error:
        adaptive_weight(weight.sum(), weight.sum(), layer)
    assert str(error.value) == (
        "last_layer must be the weight of the decoder's last layer, a tensor, but got Conv2d. "
        "Pass for example decoder.conv_out.weight."
    )


def test_adaptive_weight_hides_no_other_error():
    """A graph that was freed is the caller's mistake, and autograd's own message says so."""
    weight = torch.ones(2, requires_grad=True)
    loss = weight.square().sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        adaptive_weight(loss, loss, weight)


def test_adaptive_weight_finds_a_weight_that_is_computed():
    """Such as a parametrized one, which is no leaf."""
    direction = torch.ones(3, requires_grad=True)
    weight = F.normalize(direction, dim=0)
    assert adaptive_weight((3 * weight).sum(), weight.sum(), weight, delta=0.0).item() == pytest.approx(3)


def test_adaptive_weight_gives_the_same_under_compile():
    weight, x = torch.randn(3, requires_grad=True), torch.randn(3)

    def step():
        output = weight * x
        return adaptive_weight(output.square().mean(), output.mean(), weight)

    torch.testing.assert_close(torch.compile(step, backend="aot_eager")(), step())
