"""Speed and memory of an adversarial training step, next to the original's, as a Markdown table of ratios.

    python tests/benchmarks/adversarial_speed.py [time] [memory] [gradients] [--rounds 5]

All have the same networks, weights, batch and VGG16 (its file is named by the variable VQ_COMPONENTS_VGG16):

- ours: one forward of the autoencoder, ``VQLPIPSWithDiscriminator`` for the generator, then for the discriminator;
- the original: its autoencoder and loss, run once for each of the two optimizers;
- the original, shared: the same with one forward of the autoencoder, and without LPIPS for the discriminator.

``gradients`` compares those of a first step with the original's. The original is taming-transformers-rom1504, see
requirements-peers.txt.
"""

import torch
from measuring import in_a_process, medians, peak_above, run_named
from original import build_loss, import_original
from torch import nn

import vq_components as vq

networks = import_original("diffusionmodules.model")
VectorQuantizer2 = import_original("vqvae.quantize").VectorQuantizer2

SIZES = {"ch": 32, "ch_mult": (1, 2, 2), "num_res_blocks": 1, "attn_resolutions": [], "resolution": 64}
BATCH, CODES, DIM = 8, 1024, 64


class OriginalModel(nn.Module):
    """The parts of the original's VQModel, which needs a training framework to be imported."""

    def __init__(self):
        super().__init__()
        sizes = SIZES | {"z_channels": DIM, "double_z": False}
        self.encoder = networks.Encoder(in_channels=3, out_ch=3, **sizes)
        self.decoder = networks.Decoder(in_channels=3, out_ch=3, **sizes)
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


class Flow:
    """One way to train: model, loss, optimizers and the batch."""

    def __init__(self, name):
        torch.manual_seed(0)
        self.name, self.model = name, our_model()
        self.loss = vq.VQLPIPSWithDiscriminator(disc_start=0, delta=1e-4)
        if name.startswith("the original"):
            model = OriginalModel()
            model.load_state_dict(self.model.state_dict(), strict=False)
            loss = build_loss(disc_start=0)
            loss.discriminator.load_state_dict(self.loss.discriminator.state_dict())
            self.model, self.loss = model, loss
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
    """Seconds of a step."""
    ours, *others = medians({name: Flow(name).step for name in NAMES}, rounds).items()
    for name, value in others:
        print(f"| step | {ours[1]:.3f} s | {name} | {value:.3f} s | {value / ours[1]:.2f} x |")


def peak(name):
    """MiB that three steps take above the models."""
    step = Flow(name).step
    return peak_above(lambda: [step() for _ in range(3)])


def memory(rounds):
    """Peaks, each in a process of its own."""
    ours, *others = ((name, in_a_process(peak, name)) for name in NAMES)
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
    run_named(__doc__, BENCHMARKS, rounds=5)
