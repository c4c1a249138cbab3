"""The benchmark suite: one group for each comparison, in which the fastest has ratio 1.

    pip install pytest-benchmark
    pytest -o addopts= tests/benchmarks/test_speed.py

Peers that are not installed (requirements-peers.txt) are left out. The scripts beside this file print tables of ratios
from alternating runs, which a noisy machine disturbs less, and need no plugin.
"""

import pytest
import quantizer_speed as speed
import torch

import vq_components as vq


def run(benchmark, function, *args):
    """Nine rounds: what takes a second need not be repeated until its mean is sharp."""
    benchmark.pedantic(function, args=args, rounds=9, warmup_rounds=1)


@pytest.mark.parametrize("way", ["ours", "textbook", "products alone"])
@pytest.mark.parametrize(("number", "size", "dim"), speed.SEARCHES)
def test_search(benchmark, number, size, dim, way):
    benchmark.group = f"search, N={number}, K={size}, D={dim}"
    functions = {"ours": vq.functional.nearest_code, "textbook": speed.textbook, "products alone": speed.products}
    run(benchmark, functions[way], torch.randn(number, dim), torch.randn(size, dim))


@pytest.mark.parametrize("name", ["ours", "vector-quantize-pytorch", "diffusers", "original"])
@pytest.mark.parametrize("average", [False, True], ids=["gradient", "average"])
@pytest.mark.parametrize(("size", "dim"), speed.STEPS)
def test_training_step(benchmark, size, dim, average, name):
    found = {peer: (quantizer, unpack) for peer, quantizer, unpack in speed.peers(size, dim, average)}
    if name not in found:
        pytest.skip(f"{name} is not installed, or has no such quantizer")
    quantizer, unpack = found[name]
    z = torch.randn(16, dim, 16, 16, requires_grad=True)

    def step():
        quantized, loss = unpack(quantizer(z))
        (quantized.sum() + loss).backward()
        z.grad = None

    benchmark.group = f"training step, {'averages' if average else 'gradient'}, K={size}, D={dim}"
    run(benchmark, step)


@pytest.mark.parametrize("batch", [1, 8])
def test_sampling(benchmark, batch):
    gpt = vq.MinGPT(1024, 128, n_layer=8, n_head=8, n_embd=256)
    prompt = torch.zeros(batch, 1, dtype=torch.int64)
    benchmark.group = f"sampling 64 tokens, batch {batch}"
    run(benchmark, lambda: vq.generate(gpt, prompt, max_new_tokens=64))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels last"])
def test_encode(benchmark, memory_format):
    sizes = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (), "resolution": 64}
    encoder = vq.Encoder(in_channels=3, z_channels=16, **sizes)
    model = vq.VQModel(encoder, vq.FSQ((8, 5, 5, 5)), vq.Decoder(out_ch=3, z_channels=16, **sizes)).eval()
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    benchmark.group = "encode 4 images of 64 x 64"
    run(benchmark, model.to(memory_format=memory_format).encode, images.to(memory_format=memory_format))
