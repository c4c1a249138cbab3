"""What the test kit finds in quantizers of other packages.

    python tests/benchmarks/check_peers.py [NAME ...]

Needs the packages in requirements-peers.txt; those that are not installed are left out. Prints a table of the checks
that fail, with what was measured. docs/explanation/what-the-kit-finds.md explains each of them.
"""

import contextlib
import io
import os
import sys
import warnings
from pathlib import Path
from unittest import mock

import safetensors.torch
import torch

from vq_components.testing import (
    CheckFailure,
    QuantizerSubject,
    QuantizerTraits,
    checks_of,
    diffusers,
    taming,
    traits_of,
    vector_quantize_pytorch,
)


def declared(quantizer, adapter, **traits):
    return QuantizerTraits(**{**vars(traits_of(quantizer, adapter=adapter)), **traits})


def vector_quantize_pytorch_subjects():
    import vector_quantize_pytorch as peer

    # Its entropy is that of the batch, and its estimator is the plain one.
    lfq = {"estimator": "straight_through", "trains_codebook": False, "batched_loss": False}
    dead = {"kmeans_init": True, "threshold_ema_dead_code": 2}
    built = {
        "VectorQuantize": (peer.VectorQuantize(dim=8, codebook_size=16), {}),
        "VectorQuantize-kmeans": (peer.VectorQuantize(dim=8, codebook_size=16, **dead), {}),
        "VectorQuantize-image": (peer.VectorQuantize(dim=8, codebook_size=16, accept_image_fmap=True), {}),
        "VectorQuantize-cosine": (peer.VectorQuantize(dim=8, codebook_size=16, use_cosine_sim=True), {}),
        "VectorQuantize-large": (peer.VectorQuantize(dim=8, codebook_size=1024), {}),
        "FSQ": (peer.FSQ(levels=[5, 4, 3]), {}),
        "LFQ": (peer.LFQ(codebook_size=32, dim=5), lfq),
        "SimVQ": (peer.SimVQ(dim=8, codebook_size=16), {}),
        "ResidualVQ": (peer.ResidualVQ(dim=8, codebook_size=16, num_quantizers=2), {}),
    }
    adapter = vector_quantize_pytorch
    return [
        QuantizerSubject(each, name=name, adapter=adapter, traits=declared(each, adapter, **traits))
        for name, (each, traits) in built.items()
    ]


def diffusers_subjects():
    from diffusers.models.autoencoders.vae import VectorQuantizer

    return [
        QuantizerSubject(VectorQuantizer(16, 8, beta=0.25), name="diffusers", adapter=diffusers),
        QuantizerSubject(
            VectorQuantizer(16, 8, beta=0.25, sane_index_shape=True),
            name="diffusers-sane",
            adapter=diffusers,
            traits=beta(VectorQuantizer(16, 8, beta=0.25), diffusers),
        ),
    ]


def beta(quantizer, adapter):
    """What the papers' beta means, and both packages' argument is called: the weight of the commitment."""
    return declared(quantizer, adapter, commitment_weight=0.25, codebook_weight=1.0)


def taming_subjects():
    import transformers

    # The package imports a function that transformers no longer has.
    with mock.patch.object(transformers, "top_k_top_p_filtering", None, create=True):
        from taming.modules.vqvae.quantize import VectorQuantizer, VectorQuantizer2
    first, second = VectorQuantizer(16, 8, 0.25), VectorQuantizer2(16, 8, 0.25, sane_index_shape=True)
    return [
        QuantizerSubject(first, name="taming", adapter=taming, traits=beta(first, taming)),
        QuantizerSubject(second, name="taming-2", adapter=taming, traits=beta(second, taming)),
    ]


def taming_loss_of(**settings):
    """The original's loss, with the weights of its distance from lpips, and VGG16's from a file or random."""
    import lpips
    import transformers
    from torchvision import models

    with mock.patch.object(transformers, "top_k_top_p_filtering", None, create=True):
        from taming.modules.losses import lpips as original
        from taming.modules.losses import vqperceptual

    vgg16 = models.vgg16()
    if "VQ_COMPONENTS_VGG16" in os.environ:
        vgg16.load_state_dict(safetensors.torch.load_file(os.environ["VQ_COMPONENTS_VGG16"]), strict=False)
    with (
        mock.patch.object(models, "vgg16", return_value=vgg16),
        mock.patch.object(original.LPIPS, "load_from_pretrained"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        loss = vqperceptual.VQLPIPSWithDiscriminator(**settings)
    weights = torch.load(Path(lpips.__file__).parent / "weights/v0.1/vgg.pth", map_location="cpu")
    loss.perceptual_loss.load_state_dict(weights, strict=False)
    return loss


def main():
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    wanted = sys.argv[1:]
    for build in (taming_subjects, diffusers_subjects, vector_quantize_pytorch_subjects):
        try:
            subjects = build()
        except ImportError as error:
            print(f"left out: {error}")
            continue
        for subject in subjects:
            if wanted and not any(name in subject.name for name in wanted):
                continue
            checks, failures = checks_of(subject), []
            for check in checks.values():
                try:
                    check(subject)
                except CheckFailure as failure:
                    failures.append(failure)
            print(f"\n{subject.name}: {len(failures)} of {len(checks)} checks fail")
            for failure in failures:
                print(f"  {failure.check:34} {failure.measured[:170]}", flush=True)


if __name__ == "__main__":
    main()
