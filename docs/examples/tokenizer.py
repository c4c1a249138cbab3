"""Trains a VQ-GAN tokenizer on the color photographs that scikit-image ships; a CPU with two cores is enough.

    python docs/examples/tokenizer.py [--steps 800] [--out runs/tokenizer]

Writes into --out: reconstructions.png (two photographs that scikit-learn ships, never trained on, over their
reconstructions), curves.png, codebook.png and tokenizer.safetensors. A stopped run that is started again in the same
way goes on from its last checkpoint and ends with the same weights, bit for bit.
"""

import argparse
import math
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch.nn.functional import interpolate
from tqdm import tqdm

import vq_components as vq

CROP, BATCH, CODEBOOK_SIZE, CHECKPOINT_EVERY = 64, 4, 1024, 100


def to_image(array):
    """An array (H, W, 3) of bytes as a tensor (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(array)).permute(2, 0, 1) / 127.5 - 1


def training_photos():
    """The color photographs that are inside the scikit-image package."""
    names = ("astronaut", "cat", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry", "retina")
    left, right, _ = skimage.data.stereo_motorcycle()
    return [to_image(array) for array in (*(getattr(skimage.data, name)() for name in names), left, right)]


def random_crops(photos, number, seed):
    """Crops (number, 3, CROP, CROP) of random place, scale and colors: a function of the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    crops = []
    for _ in range(number):
        photo = photos[torch.randint(len(photos), (), generator=generator)]
        size = int(CROP * (1 + 2 * torch.rand((), generator=generator) ** 2))
        top, left = (int(torch.randint(n - size + 1, (), generator=generator)) for n in photo.shape[1:])
        crop = interpolate(photo[None, :, top : top + size, left : left + size], CROP, mode="area")[0]
        crop = crop[torch.randperm(3, generator=generator)]  # there are few greens in these photographs
        gamma = torch.exp(0.3 * torch.randn(3, 1, 1, generator=generator))
        crop = ((crop + 1) / 2).clamp(0, 1) ** gamma * 2 - 1
        crops.append(crop.flip(2) if torch.rand((), generator=generator) < 0.5 else crop)
    return torch.stack(crops)


def build(steps):
    """The tokenizer, its loss, and an optimizer for each of the two players."""
    shape = {"ch": 16, "ch_mult": (1, 3, 5), "num_res_blocks": 1, "attn_resolutions": [], "resolution": CROP}
    encoder = vq.Encoder(in_channels=3, z_channels=32, **shape)
    decoder = vq.Decoder(out_ch=3, z_channels=32, **shape)
    model = vq.VQModel(encoder, vq.EMAVectorQuantizer(CODEBOOK_SIZE, 16, decay=0.95), decoder)
    settings = {"disc_ndf": 16, "disc_num_layers": 2, "disc_weight": 0.2}
    settings.update(disc_start=steps // 2, gen_start=steps * 6 // 10, gen_ramp=steps // 10)
    try:
        perceptual = vq.LPIPSLoss("vgg")
    except OSError as error:
        print(f"Training without LPIPS: {str(error).splitlines()[0]}")
        perceptual, settings["perceptual_weight"] = None, 0.0
    loss = vq.VQLPIPSWithDiscriminator(perceptual=perceptual, **settings)
    optimizers = [
        torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95)),
        torch.optim.AdamW(loss.discriminator.parameters(), lr=4e-4, betas=(0.5, 0.9)),
    ]
    model.update_after(optimizers[0])
    return model, loss, optimizers


def train(model, loss, optimizers, steps, out):
    """Trains up to step ``steps``, from the last checkpoint if there is one; returns the history of the terms."""
    path, history, first = out / "checkpoint.pt", [], 0
    parts = {"model": model, "discriminator": loss.discriminator, "opt_g": optimizers[0], "opt_d": optimizers[1]}
    if path.exists():
        saved = torch.load(path, weights_only=True)
        if saved["steps"] != steps:
            raise SystemExit(f"{path} is of a run with --steps {saved['steps']}: use it again, or another --out.")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        history, first = saved["history"], saved["step"]
    photos = training_photos()
    for step in tqdm(range(first, steps), initial=first, total=steps, desc="training"):
        if step >= steps - steps // 10:
            model.quantize.revival = None  # the last tenth leaves the codebook's entries to the data
        for optimizer, peak in zip(optimizers, (2e-3, 4e-4), strict=True):
            decay = 0.5 + 0.5 * math.cos(math.pi * step / steps)
            optimizer.param_groups[0]["lr"] = peak * min(1, (step + 1) / 50) * (0.05 + 0.95 * decay)
        images = random_crops(photos, BATCH, seed=step)
        output = model(images)
        extra = {"quantizer_loss": output.loss, "last_layer": model.last_layer, "step": step}
        generator = loss.generator_loss(images, output.reconstructions, **extra)
        optimizers[0].zero_grad()
        generator.loss.backward()
        optimizers[0].step()
        discriminator = loss.discriminator_loss(images, output.reconstructions, step=step)
        optimizers[1].zero_grad()
        discriminator.loss.backward()
        optimizers[1].step()
        terms = {**output.terms, **generator.terms, **discriminator.terms}
        history.append({name: value.item() for name, value in terms.items()})
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            saved = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**saved, "history": history, "step": step + 1, "steps": steps}, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)  # a kill leaves the old checkpoint or the new one
    return history


@torch.no_grad()
def evaluate(model, loss, history, out):
    """Writes the pictures and the weights; prints quality on photographs never trained on."""
    model.eval()
    photos = [to_image(array)[:, : array.shape[0] // 4 * 4] for array in load_sample_images().images]
    pairs = [(photo[None], model(photo[None]).reconstructions.clamp(-1, 1)) for photo in photos]
    psnr = sum(10 * math.log10(4 / (a - b).square().mean()) for a, b in pairs) / len(pairs)
    print(f"held-out PSNR: {psnr:.2f} dB")
    if loss.perceptual is not None:
        print(f"held-out LPIPS (VGG16): {sum(loss.perceptual(a, b).item() for a, b in pairs) / len(pairs):.3f}")
    crops = (random_crops(training_photos(), 16, seed=2**40 + i) for i in range(48))
    indices = torch.cat([model.encode(batch).flatten() for batch in crops])
    usage = vq.functional.codebook_usage(indices, CODEBOOK_SIZE)
    perplexity = vq.functional.perplexity(indices, CODEBOOK_SIZE)
    print(f"codebook usage on fresh crops: {usage:.1%}, perplexity {perplexity:.0f} of {CODEBOOK_SIZE}")

    grid = torch.cat([torch.cat(pair, dim=2) for pair in pairs], dim=3)[0]
    plt.imsave(out / "reconstructions.png", ((grid + 1) / 2).permute(1, 2, 0).numpy())
    _, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    names = ("pixel", "perceptual", "generator", "adaptive_weight", "perplexity", "discriminator")
    for axis, name in zip(axes.flat, names, strict=True):
        axis.plot([terms[name] for terms in history])
        axis.set(title=name, xlabel="step")
    plt.savefig(out / "curves.png")
    _, axis = plt.subplots(layout="constrained")
    axis.plot(torch.bincount(indices, minlength=CODEBOOK_SIZE).sort(descending=True).values)
    axis.set(yscale="log", title=f"{usage:.1%} in use", xlabel="entries, by rank", ylabel="tokens")
    plt.savefig(out / "codebook.png")
    save_file(model.state_dict(), out / "tokenizer.safetensors")


def main():
    """Trains, or goes on training, then evaluates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--out", type=Path, default=Path("runs/tokenizer"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model, loss, optimizers = build(arguments.steps)
    history = train(model, loss, optimizers, arguments.steps, arguments.out)
    evaluate(model, loss, history, arguments.out)


if __name__ == "__main__":
    main()
