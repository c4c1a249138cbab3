"""The original's code for the benchmarks of this folder: taming-transformers-rom1504, see requirements-peers.txt."""

import contextlib
import importlib
import io
import os
from pathlib import Path
from unittest import mock


def import_original(name):
    """Its module ``taming.modules.<name>``, which imports a function that transformers no longer has."""
    importlib.import_module("transformers").top_k_top_p_filtering = None  # nothing here uses it
    return importlib.import_module(f"taming.modules.{name}")


def build_loss(**settings):
    """Its loss without a download: weights of the distance from lpips, of VGG16 from a file, else random.

    The file is named by the variable VQ_COMPONENTS_VGG16.
    """
    import lpips
    import safetensors.torch
    import torch
    from torchvision import models

    vgg16 = models.vgg16()
    if "VQ_COMPONENTS_VGG16" in os.environ:
        vgg16.load_state_dict(safetensors.torch.load_file(os.environ["VQ_COMPONENTS_VGG16"]), strict=False)
    with (
        mock.patch.object(models, "vgg16", return_value=vgg16),
        mock.patch.object(import_original("losses.lpips").LPIPS, "load_from_pretrained"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        loss = import_original("losses.vqperceptual").VQLPIPSWithDiscriminator(**settings)
    heads = torch.load(Path(lpips.__file__).parent / "weights/v0.1/vgg.pth", map_location="cpu")
    loss.perceptual_loss.load_state_dict(heads, strict=False)
    return loss
