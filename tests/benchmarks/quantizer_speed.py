"""Speed of the nearest-entry search and of a quantizer's training step, as a Markdown table of ratios.

    python tests/benchmarks/quantizer_speed.py [search] [step] [memory] [--rounds 7]

Everything in a row takes turns in one run; medians are compared. ``step`` compares with the peers that are installed:
vector-quantize-pytorch, diffusers and taming-transformers-rom1504, see requirements-peers.txt.
"""

import importlib
import sys

import torch
from measuring import in_a_process, medians, peak_above, run_named
from original import import_original

import vq_components as vq

SEARCHES = [(4096, 16384, 8), (4096, 16384, 256), (4096, 1024, 256), (2048, 262144, 8)]
STEPS = [(1024, 256), (16384, 256), (16384, 8), (65536, 32)]


def report(title, seconds):
    """One row for each alternative: how much longer it takes."""
    ours = seconds.pop("ours")
    for name, value in seconds.items():
        print(f"| {title} | {1e3 * ours:.1f} ms | {name} | {1e3 * value:.1f} ms | {value / ours:.2f} x |", flush=True)


def textbook(z, codebook):
    """The full matrix of squared distances."""
    return (z.square().sum(dim=1, keepdim=True) - 2 * z @ codebook.T + codebook.square().sum(dim=1)).argmin(dim=1)


def products(z, codebook, tile=2**19, columns=2**14):
    """The matrix products of a search alone, in tiles of the best size for them."""
    columns = min(columns, len(codebook))
    rows = tile // columns
    scores = torch.empty(rows, columns)
    for left in range(0, len(codebook), columns):
        part = codebook[left : left + columns].T.contiguous()
        for top in range(0, len(z), rows):
            torch.mm(z[top : top + rows], part, out=scores[: len(z) - top])


def search(rounds):
    """The search next to the textbook's and to the products that it cannot do without."""
    for number, size, dim in SEARCHES:
        z, codebook = torch.randn(number, dim), torch.randn(size, dim)
        functions = {
            "ours": lambda z=z, codebook=codebook: vq.functional.nearest_code(z, codebook),
            "textbook": lambda z=z, codebook=codebook: textbook(z, codebook),
            "products alone": lambda z=z, codebook=codebook: products(z, codebook),
        }
        report(f"search, N={number}, K={size}, D={dim}", medians(functions, rounds))


def peers(size, dim, average):
    """Name and quantizer of what is installed, each called with (B, D, H, W) and returning (quantized, loss)."""
    if average:
        yield "ours", vq.EMAVectorQuantizer(size, dim), lambda out: (out.quantized, out.loss)
    else:
        yield "ours", vq.VectorQuantizer(size, dim), lambda out: (out.quantized, out.loss)
    try:
        module = importlib.import_module("vector_quantize_pytorch")
        settings = {} if average else {"learnable_codebook": True, "ema_update": False}
        quantizer = module.VectorQuantize(dim, size, accept_image_fmap=True, **settings)
        yield "vector-quantize-pytorch", quantizer, lambda out: (out[0], out[2].sum())
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
    if average:
        return
    try:
        module = importlib.import_module("diffusers.models.autoencoders.vae")
        yield "diffusers", module.VectorQuantizer(size, dim, beta=0.25), lambda out: out[:2]
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
    try:
        module = import_original("vqvae.quantize")
        yield "original", module.VectorQuantizer2(size, dim, beta=0.25), lambda out: out[:2]
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)


def step(rounds):
    """Forward, loss and backward in training, of 16 x 16 x 16 vectors; all codebooks have started."""
    for average in (False, True):
        for size, dim in STEPS:
            z = torch.randn(16, dim, 16, 16, requires_grad=True)

            def run(quantizer, unpack, z=z):
                quantized, loss = unpack(quantizer(z))
                (quantized.sum() + loss).backward()
                z.grad = None

            functions = {
                name: lambda quantizer=quantizer, unpack=unpack: run(quantizer, unpack)
                for name, quantizer, unpack in peers(size, dim, average)
            }
            kind = "moving averages" if average else "gradient"
            report(f"training step, {kind}, N=4096, K={size}, D={dim}", medians(functions, rounds))


def peak_of_search():
    """MiB that the search takes above its inputs."""
    z, codebook = torch.randn(16384, 32), torch.randn(262144, 32)
    vq.functional.nearest_code(z[:64], codebook[:64])
    return peak_above(lambda: vq.functional.nearest_code(z, codebook))


def memory(rounds):
    """Peak memory of a search in a process of its own."""
    print(
        f"| search, N=16384, K=262144, D=32 | {in_a_process(peak_of_search):.0f} MiB above inputs "
        f"| textbook | 16384 MiB | |"
    )


BENCHMARKS = {"search": search, "step": step, "memory": memory}

if __name__ == "__main__":
    run_named(__doc__, BENCHMARKS, rounds=7)
