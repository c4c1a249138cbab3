import copy
import io
import pickle
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vq_components.losses import LPIPSLoss


def pair(batch=2, size=32, **options):
    """Images, and reconstructions that are images with noise, both in [-1, 1]."""
    images = torch.rand(batch, 3, size, size) * 2 - 1
    noisy = (images + 0.3 * torch.randn_like(images)).clamp(-1, 1)
    return images.to(**options), noisy.to(**options)


def published(net):
    """The lpips package's own module, with a random trunk, and this trunk's weights under torchvision's names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lpips

        module = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    state = {f"features.{name.partition('.')[2]}": value for name, value in module.net.state_dict().items()}
    return module, state


@pytest.mark.parametrize(("net", "tolerance"), [("vgg", 1e-6), ("alex", 1e-6), ("squeeze", 1e-6)])
def test_values_and_gradients_are_those_of_the_lpips_package(net, tolerance, tmp_path):
    module, state = published(net)
    torch.save(state, tmp_path / "trunk.pth")
    ours = LPIPSLoss(net, weights=tmp_path / "trunk.pth")
    images, reconstructions = pair()
    reconstructions.requires_grad_()
    expected, found = module(images, reconstructions).flatten(), ours(images, reconstructions)
    assert found.shape == (2,)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    gradients = [torch.autograd.grad(distance.sum(), reconstructions)[0] for distance in (expected, found)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3 * gradients[0].abs().max().item())


def test_values_with_real_weights(golden, vgg16_weights):
    """Those of the package in eval mode, and near the reference values.

    The reference values lie 2 percent from them, within what the dropout in the package's heads does in training mode.
    """
    reference = golden("lpips_vgg").tensors
    images, reconstructions = reference["a"], reference["b"]
    found = LPIPSLoss(weights=vgg16_weights)(images, reconstructions)
    torch.testing.assert_close(found, reference["vgg"], rtol=0.03, atol=0.0)

    module, _ = published("vgg")
    state, names = load_file(vgg16_weights), module.net.state_dict()
    module.net.load_state_dict({name: state[f"features.{name.partition('.')[2]}"] for name in names})
    torch.testing.assert_close(found, module(images, reconstructions).flatten(), rtol=1e-5, atol=0.0)


def test_distance_is_zero_for_equal_images_symmetric_and_positive(squeeze):
    images, reconstructions = pair()
    assert (squeeze(images, images) == 0).all()
    distance = squeeze(images, reconstructions)
    assert (distance > 0).all()
    torch.testing.assert_close(squeeze(reconstructions, images), distance)
    torch.testing.assert_close(squeeze(images[1:], reconstructions[1:]), distance[1:])


@pytest.mark.parametrize("case", ["equal", "black", "both black", "no features"])
def test_gradient_is_finite_everywhere(squeeze, case):
    images, reconstructions = pair()
    if case == "equal":
        reconstructions = images.clone()
    if case in ("black", "both black"):
        reconstructions = torch.full_like(images, -1)
    if case == "both black":
        images = reconstructions.clone()
    if case == "no features":  # where a length has no gradient
        for parameter in squeeze._hidden[0].features.parameters():
            parameter.zero_()
    reconstructions.requires_grad_()
    distance = squeeze(images, reconstructions)
    (gradient,) = torch.autograd.grad(distance.sum(), reconstructions)
    assert distance.isfinite().all()
    assert gradient.isfinite().all()


def test_gradient_is_that_of_finite_differences(squeeze):
    images, reconstructions = pair(batch=1, size=20, dtype=torch.float64)
    squeeze.double()
    reconstructions.requires_grad_()
    distance = squeeze(images, reconstructions)
    assert distance.dtype == torch.float64
    (gradient,) = torch.autograd.grad(distance.sum(), reconstructions)
    direction = torch.randn_like(gradient)
    with torch.no_grad():
        ends = [squeeze(images, reconstructions + step * direction) for step in (1e-6, -1e-6)]
    assert (gradient * direction).sum().item() == pytest.approx(((ends[0] - ends[1]) / 2e-6).item(), rel=1e-4)


def test_images_need_no_graph(squeeze):
    """All that is kept for the backward pass belongs to the reconstructions."""
    images, reconstructions = pair()

    weights = {parameter.data_ptr() for parameter in squeeze._hidden[0].parameters()}

    def saved(x, y):
        kept = {}

        def pack(tensor):
            kept[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            squeeze(x, y)
        return sum(tensor.numel() for address, tensor in kept.items() if address not in weights)

    assert saved(images, reconstructions) == 0
    one = saved(images, reconstructions.requires_grad_())
    assert 0 < one < 0.6 * saved(images.requires_grad_(), reconstructions)


# --- the hidden network


def test_network_is_hidden_from_its_owner(squeeze):
    owner = nn.Sequential(squeeze)
    assert not list(owner.parameters())
    assert not list(owner.buffers())
    assert not owner.state_dict()
    assert list(owner.modules()) == [owner, squeeze]
    owner.load_state_dict({})


def test_train_and_requires_grad_do_not_reach_the_network(squeeze):
    images, reconstructions = pair()
    before = squeeze(images, reconstructions)
    owner = nn.Sequential(squeeze).train().requires_grad_(True)
    network = squeeze._hidden[0]
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(owner[0](images, reconstructions), before)
    assert torch.equal(owner[0](images, reconstructions), before)


def test_network_moves_with_its_owner(squeeze):
    owner = nn.Sequential(squeeze)
    owner.double()
    tensors = [*squeeze._hidden[0].parameters(), *squeeze._hidden[0].buffers()]
    assert {tensor.dtype for tensor in tensors} == {torch.float64}
    owner.to("meta")
    tensors = [*squeeze._hidden[0].parameters(), *squeeze._hidden[0].buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(squeeze, dtype):
    images, reconstructions = pair(dtype=dtype)
    expected = squeeze(images.float(), reconstructions.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = squeeze(images, reconstructions.requires_grad_())
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    found.sum().backward()
    assert reconstructions.grad.dtype == dtype
    squeeze.to(dtype)
    assert torch.equal(squeeze(images, reconstructions), expected)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_whole_and_their_own(squeeze, make):
    images, reconstructions = pair()
    expected = squeeze(images, reconstructions)
    other = make(squeeze)
    assert torch.equal(other(images, reconstructions), expected)
    other.double()
    assert squeeze(images, reconstructions).dtype == torch.float32


def test_module_can_be_saved_as_a_whole(squeeze):
    images, reconstructions = pair()
    file = io.BytesIO()
    torch.save(squeeze, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(images, reconstructions), squeeze(images, reconstructions))


def test_compiles_as_one_graph(squeeze):
    images, reconstructions = pair()
    compiled = torch.compile(squeeze, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images, reconstructions), squeeze(images, reconstructions))


def test_repr_names_the_network(squeeze):
    assert repr(squeeze) == 'LPIPSLoss("squeeze")'


# --- checks at the door


def test_an_empty_batch_gives_no_distances(squeeze):
    assert squeeze(torch.zeros(0, 3, 32, 32), torch.zeros(0, 3, 32, 32)).shape == (0,)


@pytest.mark.parametrize(
    ("images", "reconstructions", "error", "message"),
    [
        (
            torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
            torch.zeros(2, 3, 32, 32),
            TypeError,
            "LPIPSLoss compares floating-point images in [-1, 1], but images are torch.uint8. "
            "Convert 8-bit images with images / 127.5 - 1.",
        ),
        (
            torch.zeros(2, 3, 32, 32),
            torch.zeros(2, 3, 32, 32, dtype=torch.int64),
            TypeError,
            "LPIPSLoss compares floating-point images in [-1, 1], but reconstructions are torch.int64. "
            "Convert 8-bit images with images / 127.5 - 1.",
        ),
        (
            torch.zeros(2, 3, 32, 32),
            torch.zeros(1, 3, 32, 32),
            ValueError,
            "LPIPSLoss compares images and reconstructions of one shape (B, 3, H, W), but got (2, 3, 32, 32) "
            "and (1, 3, 32, 32). Repeat the channel of gray images.",
        ),
        (
            torch.zeros(2, 1, 32, 32),
            torch.zeros(2, 1, 32, 32),
            ValueError,
            "LPIPSLoss compares images and reconstructions of one shape (B, 3, H, W), but got (2, 1, 32, 32) "
            "and (2, 1, 32, 32). Repeat the channel of gray images.",
        ),
        (
            torch.zeros(2, 3, 32, 16),
            torch.zeros(2, 3, 32, 16),
            ValueError,
            'LPIPSLoss("squeeze") needs images of at least 17 x 17, but got 32 x 16. '
            "Enlarge them, or use another network.",
        ),
        (
            torch.full((2, 3, 32, 32), -255.0),
            torch.zeros(2, 3, 32, 32),
            ValueError,
            "LPIPSLoss compares images in [-1, 1], but got an image with a value of size 255. "
            "Convert 8-bit images with images / 127.5 - 1.",
        ),
    ],
)
def test_what_cannot_be_compared_raises(squeeze, images, reconstructions, error, message):
    with pytest.raises(error) as raised:
        squeeze(images, reconstructions)
    assert str(raised.value) == message


def test_range_is_checked_for_images_only(squeeze):
    """An untrained decoder may leave it."""
    squeeze(torch.full((1, 3, 32, 32), 1.5), torch.full((1, 3, 32, 32), 9.0))
