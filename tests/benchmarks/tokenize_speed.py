"""Speed and memory of turning a folder of images into tokens, next to the original's encoder, as a Markdown table.

    python tests/benchmarks/tokenize_speed.py [time] [tokens] [memory] [--rounds 5]

Networks and weights are the same: random ones, with a codebook that has started from images. Images are crops of the
photos inside scikit-image. The original is taming-transformers-rom1504, see requirements-peers.txt.
"""

import contextlib
import sys

import torch
from measuring import in_a_process, medians, peak_above, run_named
from original import import_original
from skimage import data
from torch import nn

import vq_components as vq

Encoder = import_original("diffusionmodules.model").Encoder
VectorQuantizer2 = import_original("vqvae.quantize").VectorQuantizer2

SIZES = {"ch": 64, "ch_mult": (1, 1, 2, 2), "num_res_blocks": 2, "attn_resolutions": [], "resolution": 128}
BATCH, CODES, DIM, SIDE = 8, 1024, 64, 128
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


def batches(number):
    """That many batches of crops ``(8, 3, 128, 128)`` in ``[-1, 1]``, one at a time."""
    generator = torch.Generator().manual_seed(0)
    photos = [torch.from_numpy(getattr(data, name)().copy()).permute(2, 0, 1).float() / 127.5 - 1 for name in PHOTOS]
    for _ in range(number):
        crops = []
        for photo in (photos * BATCH)[:BATCH]:
            top, left = (int(torch.randint(side - SIDE + 1, (), generator=generator)) for side in photo.shape[1:])
            crops.append(photo[:, top : top + SIDE, left : left + SIDE])
        yield torch.stack(crops)


def our_model():
    """A tokenizer in eval mode whose codebook has started."""
    torch.manual_seed(0)
    sizes = SIZES | {"z_channels": DIM}
    model = vq.VQModel(
        vq.Encoder(in_channels=3, **sizes), vq.VectorQuantizer(CODES, DIM), vq.Decoder(out_ch=3, **sizes)
    )
    with torch.no_grad():
        model(next(batches(1)))
    return model.eval()


class OriginalEncoder(nn.Module):
    """What the original's VQModel does to encode, with our weights."""

    def __init__(self, ours):
        super().__init__()
        self.encoder = Encoder(in_channels=3, out_ch=3, z_channels=DIM, double_z=False, **SIZES)
        self.quant_conv = nn.Conv2d(DIM, DIM, 1)
        self.quantize = VectorQuantizer2(CODES, DIM, beta=0.25)
        state = ours.state_dict()
        self.load_state_dict({name: state[name] for name in self.state_dict()})

    @torch.no_grad()
    def encode(self, images):
        return self.quantize(self.quant_conv(self.encoder(images)))[2][2].view(len(images), SIDE // 8, SIDE // 8)


def half(encode):
    """The same under bfloat16 autocast."""

    def run(images):
        with torch.autocast("cpu", torch.bfloat16):
            return encode(images)

    return run


def ways():
    """Name and function from images to tokens."""
    model, last = our_model(), our_model().to(memory_format=torch.channels_last)
    compiled = torch.compile(our_model().encode)
    with contextlib.redirect_stdout(sys.stderr):
        original = OriginalEncoder(model).eval()
    return {
        "ours": model.encode,
        "the original": original.encode,
        "ours, channels_last": lambda images: last.encode(images.to(memory_format=torch.channels_last)),
        "ours, bfloat16": half(model.encode),
        "ours, channels_last, bfloat16": half(lambda images: last.encode(images.to(memory_format=torch.channels_last))),
        "ours, torch.compile": compiled,
    }


def speed(rounds):
    """Images a second; the first round, which does not count, compiles."""
    images = next(batches(1))
    seconds = medians({name: lambda encode=encode: encode(images) for name, encode in ways().items()}, rounds)
    rates = {name: BATCH / value for name, value in seconds.items()}
    theirs = rates.pop("the original")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.1f} images a second | the original | {theirs:.1f} | {rate / theirs:.2f} x |")


def tokens(rounds):
    """Share of tokens that another way changes."""
    functions = ways()
    changed = dict.fromkeys(functions, 0.0)
    for images in batches(rounds):
        reference = functions["ours"](images)
        for name, encode in functions.items():
            changed[name] += float((encode(images) != reference).double().mean()) / rounds
    for name, share in changed.items():
        if name != "ours":
            print(f"| tokens that differ | | {name} | {share:.2%} | |")


def peak(number):
    """MiB above the model that it takes to turn that many batches into tokens, which are kept."""
    model = our_model()
    return peak_above(lambda: [model.encode(images) for images in batches(number)])


def memory(rounds):
    """Peaks of few and of many images, each in a process of its own."""
    few, many = (in_a_process(peak, number) for number in (4, 32))
    print(f"| peak memory, 32 images | {few:.0f} MiB | 256 images | {many:.0f} MiB | {many / few:.2f} x |")


BENCHMARKS = {"time": speed, "tokens": tokens, "memory": memory}

if __name__ == "__main__":
    run_named(__doc__, BENCHMARKS, rounds=5)
