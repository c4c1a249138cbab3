import builtins
import sys
import urllib.error

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights

from vq_components.losses import LPIPSLoss, _trunk

URL = SqueezeNet1_1_Weights.IMAGENET1K_V1.url
FILE = URL.rpartition("/")[2]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Torch hub's cache is empty, and the network is down."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.delenv("VQ_COMPONENTS_VGG16", raising=False)

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no connection")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "hub" / "checkpoints"


def distance(module):
    torch.manual_seed(0)
    return module(torch.rand(1, 3, 32, 32) * 2 - 1, torch.rand(1, 3, 32, 32) * 2 - 1)


def test_both_file_formats_give_the_same(squeeze_weights, tmp_path):
    state = torch.load(squeeze_weights, weights_only=True)
    save_file({key: value for key, value in state.items() if key.startswith("features")}, tmp_path / "w.safetensors")
    modules = [LPIPSLoss("squeeze", weights=path) for path in (squeeze_weights, str(tmp_path / "w.safetensors"))]
    assert torch.equal(distance(modules[0]), distance(modules[1]))
    loaded = modules[0]._hidden[0].features.state_dict()
    assert loaded.keys() == {key[9:] for key in state if key.startswith("features")}
    assert all(torch.equal(value, state[f"features.{key}"]) for key, value in loaded.items())


def test_weights_in_half_precision_become_float32(squeeze_weights, tmp_path):
    state = torch.load(squeeze_weights, weights_only=True)
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / "half.pth")
    module = LPIPSLoss("squeeze", weights=tmp_path / "half.pth")
    assert {parameter.dtype for parameter in module._hidden[0].parameters()} == {torch.float32}


def test_construction_prints_nothing_and_draws_no_random_numbers(squeeze_weights, capfd):
    before = torch.get_rng_state()
    LPIPSLoss("squeeze", weights=squeeze_weights)
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


def test_cached_weights_are_used(squeeze_weights, cache):
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(squeeze_weights.read_bytes())
    assert torch.equal(distance(LPIPSLoss("squeeze")), distance(LPIPSLoss("squeeze", weights=squeeze_weights)))


def test_download_goes_to_the_cache(squeeze_weights, cache, monkeypatch):
    calls = []

    def download(url, path, hash_prefix, progress):
        calls.append((url, path, hash_prefix, progress))
        (cache / FILE).write_bytes(squeeze_weights.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert torch.equal(distance(LPIPSLoss("squeeze")), distance(LPIPSLoss("squeeze", weights=squeeze_weights)))
    LPIPSLoss("squeeze")
    assert calls == [(URL, str(cache / FILE), "b8a52dc0", False)]


def test_no_connection_names_the_ways_without_one(cache):
    with pytest.raises(OSError, match="could not download") as error:
        LPIPSLoss("squeeze")
    assert str(error.value) == (
        f"LPIPSLoss could not download the weights of its network from {URL} (<urlopen error no connection>). "
        f"Without a connection, pass weights= a local file, or copy {FILE} into {cache}."
    )
    vgg = VGG16_Weights.IMAGENET1K_V1.url
    with pytest.raises(OSError, match="could not download") as error:
        LPIPSLoss()
    assert str(error.value) == (
        f"LPIPSLoss could not download the weights of its network from {vgg} (<urlopen error no connection>). "
        "Without a connection, pass weights= a local file, set the environment variable VQ_COMPONENTS_VGG16 to one, "
        f"or copy vgg16-397923af.pth into {cache}."
    )


def test_environment_variable_is_for_vgg_only(tmp_path, monkeypatch, vgg16_weights):
    monkeypatch.setenv("VQ_COMPONENTS_VGG16", str(vgg16_weights))
    assert torch.equal(distance(LPIPSLoss()), distance(LPIPSLoss("vgg", weights=vgg16_weights)))
    with pytest.raises(OSError, match=AlexNet_Weights.IMAGENET1K_V1.url):
        LPIPSLoss("alex")


def test_a_file_that_is_not_there_is_named_with_its_source(tmp_path, monkeypatch):
    path = str(tmp_path / "nothing.pth")
    with pytest.raises(FileNotFoundError) as error:
        LPIPSLoss("squeeze", weights=path)
    assert str(error.value) == f"LPIPSLoss reads its network from weights={path!r}, but there is no file {path!r}."
    monkeypatch.setenv("VQ_COMPONENTS_VGG16", path)
    with pytest.raises(FileNotFoundError) as error:
        LPIPSLoss()
    assert str(error.value) == (
        f"LPIPSLoss reads its network from the environment variable VQ_COMPONENTS_VGG16, but there is no file {path!r}."
    )


@pytest.mark.parametrize(
    ("change", "report"),
    [
        (lambda state: state.pop("features.3.squeeze.bias"), "missing: features.3.squeeze.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected: extra"),
        (
            lambda state: state.update({"features.0.bias": torch.zeros(2)}),
            "of another shape: features.0.bias",
        ),
        (
            lambda state: [state.update({f"net.{key}": state.pop(key)}) for key in list(state)],
            "missing: features.0.weight, features.0.bias, features.3.squeeze.weight and 47 more; "
            "unexpected: net.features.0.weight, net.features.0.bias, net.features.3.squeeze.weight and 49 more",
        ),
    ],
)
def test_weights_that_do_not_fit_are_reported(squeeze_weights, tmp_path, change, report):
    state = torch.load(squeeze_weights, weights_only=True)
    change(state)
    path = tmp_path / "changed.pth"
    torch.save(state, path)
    with pytest.raises(ValueError, match="does not hold") as error:
        LPIPSLoss("squeeze", weights=path)
    assert str(error.value) == (
        f"{path} does not hold the weights of torchvision's squeezenet1_1 as features.N.weight ({report})."
    )


def test_a_file_with_something_else_is_reported(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(
        ValueError, match=r"missing: features\.0\.weight, features\.0\.bias, features\.3\.squeeze\.weight and"
    ):
        LPIPSLoss("squeeze", weights=tmp_path / "list.pth")


def test_nothing_is_unpickled(tmp_path):
    """A checkpoint could run code: it is read as tensors only."""
    torch.save({"features.0.weight": _trunk.Trunk}, tmp_path / "code.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        LPIPSLoss("squeeze", weights=tmp_path / "code.pth")


def test_missing_safetensors_names_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError) as error:
        LPIPSLoss("squeeze", weights=path)
    assert str(error.value) == f'Reading {path} needs the safetensors package: pip install "vq-components[examples]"'


def test_network_needs_no_import_of_lpips(squeeze_weights, monkeypatch):
    """Its import takes a second, and loads SciPy; only its files are read."""
    original = builtins.__import__

    def guarded(name, *args, **kwargs):
        assert name != "lpips"
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)
    LPIPSLoss("squeeze", weights=squeeze_weights)


def test_other_networks_raise():
    with pytest.raises(ValueError, match="networks") as error:
        LPIPSLoss("resnet")
    assert str(error.value) == "LPIPSLoss has the networks 'vgg', 'alex', 'squeeze', but got net='resnet'."
