"""Speed and memory of an adversarial training step, next to the original's, as a Markdown table of ratios.

    python tests/benchmarks/adversarial_speed.py [time] [memory] [gradients] [--rounds 5]

All have the same networks, weights, batch and VGG16 (its file is named by the variable VQ_COMPONENTS_VGG16):

- ours: one forward of the autoencoder, ``VQLPIPSWithDiscriminator`` for the generator, then for the discriminator;
- the original: its autoencoder and loss, run once for each of the two optimizers;
- the original, shared: the same with one forward of the autoencoder, and without LPIPS for the discriminator.

``gradients`` compares those of a first step with the original's. The original is taming-transformers-rom1504, see
requirements-peers.txt.
"""

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import lpips
import safetensors.torch
import torch
import transformers
from torch import nn
from torchvision import models

import vq_components as vq

transformers.top_k_top_p_filtering = None  # the original imports it; nothing here uses it
from taming.modules.diffusionmodules.model import Decoder, Encoder  # noqa: E402
from taming.modules.losses import lpips as original_lpips  # noqa: E402
from taming.modules.losses import vqperceptual  # noqa: E402
from taming.modules.vqvae.quantize import VectorQuantizer2  # noqa: E402

SIZES = {"ch": 32, "ch_mult": (1, 2, 2), "num_res_blocks": 1, "attn_resolutions": [], "resolution": 64}
BATCH, CODES, DIM = 8, 1024, 64


class OriginalModel(nn.Module):
    """The parts of the original's VQModel, which needs a training framework to be imported."""

    def __init__(self):
        super().__init__()
        sizes = SIZES | {"z_channels": DIM, "double_z": False}
        self.encoder = Encoder(in_channels=3, out_ch=3, **sizes)
        self.decoder = Decoder(in_channels=3, out_ch=3, **sizes)
        self.quantize = VectorQuantizer2(CODES, DIM, beta=0.25)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(DIM, DIM, 1), nn.Conv2d(DIM, DIM, 1)

    def forward(self, images):
        quantized, loss, _ = self.quantize(self.quant_conv(self.encoder(images)))
        return self.decoder(self.post_quant_conv(quantized)), loss


def our_model():
    """The same networks, with the original's weights of the loss, its start, and nothing revived."""
    quantizer = vq.VectorQuantizer(CODES, DIM, commitment_weight=1, codebook_weight=0.25, init="uniform", revival=None)
    sizes = SIZES | {"z_channels": DIM}
    return vq.VQModel(vq.Encoder(in_channels=3, **sizes), quantizer, vq.Decoder(out_ch=3, **sizes))


def original_loss(ours):
    """The original's loss with our discriminator's weights, and VGG16's from a file instead of a download."""
    with (
        mock.patch.object(models, "vgg16", return_value=models.vgg16()),
        mock.patch.object(original_lpips.LPIPS, "load_from_pretrained"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        loss = vqperceptual.VQLPIPSWithDiscriminator(disc_start=0)
    loss.discriminator.load_state_dict(ours.discriminator.state_dict())
    features = safetensors.torch.load_file(os.environ["VQ_COMPONENTS_VGG16"])
    state = torch.load(Path(lpips.__file__).parent / "weights/v0.1/vgg.pth", map_location="cpu")
    for key in loss.perceptual_loss.net.state_dict():
        state[f"net.{key}"] = features["features." + key.split(".", 1)[1]]
    missing = loss.perceptual_loss.load_state_dict(state, strict=False).missing_keys
    assert sorted(missing) == ["scaling_layer.scale", "scaling_layer.shift"], missing
    return loss


class Flow:
    """One way to train: model, loss, optimizers and the batch."""

    def __init__(self, name):
        torch.manual_seed(0)
        self.name, self.model = name, our_model()
        self.loss = vq.VQLPIPSWithDiscriminator(disc_start=0, delta=1e-4)
        if name.startswith("the original"):
            model = OriginalModel()
            model.load_state_dict(self.model.state_dict(), strict=False)
            self.model, self.loss = model, original_loss(self.loss)
        self.images = torch.rand(BATCH, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
        self.generator = torch.optim.Adam(self.model.parameters(), lr=1e-5)
        self.discriminator = torch.optim.Adam(self.loss.discriminator.parameters(), lr=1e-5)

    def reconstruct(self):
        """Reconstructions, the quantizer's loss, and the weight of the last layer."""
        out = self.model(self.images)
        if self.name.startswith("ours"):
            return out.reconstructions, out.loss, self.model.last_layer
        return *out, self.model.decoder.conv_out.weight

    def optimize(self, optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def step(self):
        """Both players' steps."""
        with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in self.name):
            images, (reconstructions, codebook_loss, last) = self.images, self.reconstruct()
            loss, _ = self.loss(codebook_loss, images, reconstructions, 0, 0, last_layer=last)
        self.optimize(self.generator, loss)
        with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in self.name):
            if self.name == "the original":
                reconstructions, codebook_loss, last = self.reconstruct()
            elif self.name == "the original, shared":
                self.loss.perceptual_weight, weight = 0, self.loss.perceptual_weight
            loss, _ = self.loss(codebook_loss, images, reconstructions.detach(), 1, 0, last_layer=last)
            if self.name == "the original, shared":
                self.loss.perceptual_weight = weight
        self.optimize(self.discriminator, loss)


NAMES = ["ours", "ours, bfloat16", "the original", "the original, shared"]


def speed(rounds):
    """Median seconds of a step; they take turns, so that a slower machine is slower for all."""
    flows, times = [Flow(name) for name in NAMES], {name: [] for name in NAMES}
    for repeat in range(rounds + 1):
        for flow in flows:
            start = time.perf_counter()
            flow.step()
            if repeat > 0:
                times[flow.name].append(time.perf_counter() - start)
    ours, *others = ((name, statistics.median(values)) for name, values in times.items())
    for name, value in others:
        print(f"| step | {ours[1]:.3f} s | {name} | {value:.3f} s | {value / ours[1]:.2f} x |")


def peak(name):
    """MiB that three steps take above what is there before them, by the system's account of this process (Linux)."""
    flow = Flow(name)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is there now
    before = resident("VmRSS")
    for _ in range(3):
        flow.step()
    return resident("VmHWM") - before


def resident(key):
    """MiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def memory(rounds):
    """Peaks, each in a process of its own."""
    command = [sys.executable, __file__, "--peak"]
    ours, *others = ((name, float(subprocess.check_output([*command, name], text=True).split()[-1])) for name in NAMES)
    for name, value in others:
        print(f"| peak memory | {ours[1]:.0f} MiB | {name} | {value:.0f} MiB | {value / ours[1]:.2f} x |")


def gradients(rounds):
    """Largest difference between our gradients and the original's of a step in float64, next to the largest gradient.

    In float32 they differ by the original's rounding: its ``z + (entry - z)`` is not the entry.
    """
    ours, theirs = Flow("ours"), Flow("the original, shared")
    for flow in (ours, theirs):
        flow.model.double()
        flow.loss.double()
        flow.images = flow.images.double()
        flow.step()
    parts = {"autoencoder": lambda flow: flow.model, "discriminator": lambda flow: flow.loss.discriminator}
    for part, of in parts.items():
        mine, its = ({name: p.grad for name, p in of(flow).named_parameters()} for flow in (ours, theirs))
        scale = max(float(grad.abs().max()) for grad in its.values())
        worst = max(float((mine[name] - grad).abs().max()) for name, grad in its.items())
        print(f"| gradients, {part} | | the original, shared | differ by {worst / scale:.0e} of the largest | |")


BENCHMARKS = {"time": speed, "memory": memory, "gradients": gradients}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", choices=NAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak(arguments.peak))
        sys.exit()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}\n")
    print("| what | ours | alternative | its | ratio |\n|---|---|---|---|---|")
    for name in arguments.names or BENCHMARKS:
        BENCHMARKS[name](arguments.rounds)
