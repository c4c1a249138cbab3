"""Trains a small VQ-VAE on several processes: DistributedDataParallel, on GPUs if there are any, else on the CPU.

    torchrun --nproc-per-node 2 docs/examples/distributed.py [--steps 600] [--out runs/distributed]

Every process crops its own images. In the end all of them hold the same codebook, and process 0 writes a picture.
"""

import argparse
import os
from pathlib import Path

import skimage.data
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import vq_components as vq
from vq_components.plotting import plot_codebook, plot_reconstructions, plot_tokens, plot_usage

CROP, BATCH, CODEBOOK_SIZE, CODEBOOK_DIM, WIDTH = 32, 16, 256, 8, 48


def photographs():
    """The color photographs that are inside the scikit-image package, ``(3, H, W)`` in [-1, 1]."""
    names = ("astronaut", "cat", "coffee", "rocket", "immunohistochemistry")
    return [torch.tensor(getattr(skimage.data, name)()).permute(2, 0, 1) / 127.5 - 1 for name in names]


def random_crops(photos, number, generator):
    """Crops (number, 3, CROP, CROP) of random photographs at random places, shrunk by two."""
    crops = []
    for _ in range(number):
        photo = photos[torch.randint(len(photos), (), generator=generator)]
        top, left = (int(torch.randint(n - 2 * CROP + 1, (), generator=generator)) for n in photo.shape[1:])
        crops.append(photo[:, top : top + 2 * CROP, left : left + 2 * CROP])
    return nn.functional.avg_pool2d(torch.stack(crops), 2)


def build():
    """A tokenizer with one token for each 4 x 4 pixels."""
    w = WIDTH
    encoder = nn.Sequential(
        *(nn.Conv2d(3, w, 4, 2, 1), nn.SiLU(), nn.Conv2d(w, w, 4, 2, 1), nn.SiLU(), nn.Conv2d(w, w, 3, 1, 1), nn.SiLU())
    )
    decoder = nn.Sequential(
        *(nn.Conv2d(w, w, 3, 1, 1), nn.SiLU(), nn.Conv2d(w, w, 3, 1, 1), nn.SiLU()),
        *(nn.Conv2d(w, 48, 3, 1, 1), nn.PixelShuffle(4)),
    )
    return vq.VQModel(encoder, vq.EMAVectorQuantizer(CODEBOOK_SIZE, CODEBOOK_DIM, decay=0.95), decoder, z_channels=w)


def train(model, photos, steps, device):
    """Trains all processes together, each on its own crops."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.update_after(optimizer)
    wrapped = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    with tqdm(total=steps, desc="training", disable=dist.get_rank() > 0) as bar:
        for step in range(steps):
            images = random_crops(photos, BATCH, generator).to(device)
            reconstructions, _, quantizer_loss, terms = wrapped(images)
            loss = mse_loss(reconstructions, images) + quantizer_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.4f}", perplexity=f"{terms['perplexity'].item():.0f}")


def largest_difference(tensor):
    """Largest absolute difference between this tensor on process 0 and on any other process."""
    reference = tensor.detach().clone()
    dist.broadcast(reference, src=0)
    difference = (tensor - reference).abs().max()
    dist.all_reduce(difference, op=dist.ReduceOp.MAX)
    return difference.item()


@torch.no_grad()
def report(model, photos, out, device):
    """Process 0 prints how the codebook does and draws it; all processes must come here, to count together."""
    model.eval()
    generator = torch.Generator().manual_seed(1000 + dist.get_rank())
    batches = [random_crops(photos, BATCH, generator).to(device) for _ in range(16)]
    latents = [model.features(images) for images in batches]
    health, difference = model.quantize.health(latents), largest_difference(model.quantize.codebook)
    error = torch.stack([mse_loss(model(images).reconstructions.clamp(-1, 1), images) for images in batches]).mean()
    dist.all_reduce(error)
    if dist.get_rank() > 0:
        return
    print(f"processes: {dist.get_world_size()}, largest difference between their codebooks: {difference:g}")
    print(f"PSNR on fresh crops: {10 * torch.log10(4 * dist.get_world_size() / error).item():.2f} dB")
    print(f"health of the codebook: {health}")
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    images = batches[0][:8]
    plot_reconstructions(images, model(images).reconstructions, ax=axes[0, 0])
    plot_tokens(model.encode(images[:4]), ax=axes[1, 0])
    plot_usage(health.counts, ax=axes[0, 1])
    vectors = latents[0].movedim(1, -1).flatten(0, -2)
    plot_codebook(model.quantize.codebook, vectors, counts=health.counts, ax=axes[1, 1])
    figure.savefig(out / "distributed.png")


def main():
    """Joins the other processes, trains, and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("runs/distributed"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        torch.manual_seed(0)
        photos, model = photographs(), build().to(device)
        train(model, photos, arguments.steps, device)
        report(model, photos, arguments.out, device)
        dist.barrier()  # leave together: an early end can catch gloo's threads with the tensors of their last work
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
