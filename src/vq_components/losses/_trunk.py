"""Weights of the perceptual network: where they are found, and how they are read."""

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

_VARIABLE = "VQ_COMPONENTS_VGG16"


class Trunk(NamedTuple):
    """One of the classification networks that LPIPS was calibrated on."""

    model: str  # its name in torchvision
    taps: tuple[int, ...]  # the layers of torchvision's `features` whose outputs are compared
    min_size: int  # height and width of the smallest images that reach the last of them


TRUNKS = {
    "vgg": Trunk("vgg16", (3, 8, 15, 22, 29), min_size=16),
    "alex": Trunk("alexnet", (1, 4, 7, 9, 11), min_size=31),
    "squeeze": Trunk("squeezenet1_1", (1, 4, 7, 9, 10, 11, 12), min_size=17),
}


def load_features(net: str, weights: str | os.PathLike[str] | None) -> nn.Sequential:
    """The trunk's layers up to the last one that is compared, with trained weights, frozen and in eval mode."""
    from torchvision.models import get_model

    trunk = TRUNKS[net]
    # On `meta` no random weights are made, which for VGG16 would take seconds and a gigabyte.
    with torch.device("meta"):
        model = get_model(trunk.model, weights=None)
    features: nn.Sequential = model.features[: trunk.taps[-1] + 1]
    path = _find(net, weights)
    features.load_state_dict(_select(_read(path), features, path, trunk.model), assign=True)
    return features.requires_grad_(False).eval()


def load_heads(net: str) -> list[Tensor]:
    """The linear heads that the lpips package ships: one weight ``(C, 1, 1)`` per compared layer."""
    # Only the package's folder is needed. Importing it would import SciPy as well.
    package = importlib.util.find_spec("lpips")
    if package is None or package.origin is None:
        raise ImportError('LPIPSLoss takes its linear heads from the lpips package. Install it: pip install "lpips"')
    path = Path(package.origin).parent / "weights" / "v0.1" / f"{net}.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{stage}.model.1.weight"][0] for stage in range(len(TRUNKS[net].taps))]


def _find(net: str, weights: str | os.PathLike[str] | None) -> Path:
    """Path of the weights: the argument, the environment variable, torch hub's cache, or a download into it."""
    if weights is not None:
        return _existing(Path(weights), f"weights={os.fspath(weights)!r}")
    if net == "vgg" and os.environ.get(_VARIABLE):
        return _existing(Path(os.environ[_VARIABLE]), f"the environment variable {_VARIABLE}")
    return _download(net)


def _existing(path: Path, source: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"LPIPSLoss reads its network from {source}, but there is no file {str(path)!r}.")
    return path


def _download(net: str) -> Path:
    from torchvision.models import get_model_weights

    url: str = get_model_weights(TRUNKS[net].model).IMAGENET1K_V1.url
    name = url.rpartition("/")[2]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            # torchvision's file names end in the first digits of the SHA-256 hash.
            torch.hub.download_url_to_file(
                url, str(cached), hash_prefix=name.rpartition("-")[2].removesuffix(".pth"), progress=False
            )
        except OSError as error:
            variable = f", set the environment variable {_VARIABLE} to one" if net == "vgg" else ""
            raise OSError(
                f"LPIPSLoss could not download the weights of its network from {url} ({error}). Without a connection, "
                f"pass weights= a local file{variable}, or copy {name} into {cached.parent}."
            ) from error
    return cached


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        state = torch.load(path, map_location="cpu", weights_only=True)
        return state if isinstance(state, dict) else {}
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            f'Reading {path} needs the safetensors package: pip install "vq-components[examples]"'
        ) from error
    return load_file(path)


def _select(state: dict[str, Tensor], features: nn.Module, path: Path, model: str) -> dict[str, Tensor]:
    """The entries of torchvision's checkpoint that ``features`` needs, in float32 and under its names; all or none."""
    expected = {f"features.{key}": value.shape for key, value in features.state_dict().items()}
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected and not key.startswith("classifier.")],
        "of another shape": [key for key in expected if key in state and state[key].shape != expected[key]],
    }
    if any(problems.values()):
        report = "; ".join(f"{problem}: {_first(keys)}" for problem, keys in problems.items() if keys)
        raise ValueError(f"{path} does not hold the weights of torchvision's {model} as features.N.weight ({report}).")
    return {key.removeprefix("features."): state[key].float() for key in expected}


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
