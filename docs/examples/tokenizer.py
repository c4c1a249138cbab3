"""Trains a VQ-GAN tokenizer on the color photographs that scikit-image ships; a CPU with two cores is enough.

    python docs/examples/tokenizer.py [--steps 1400] [--out runs/tokenizer]

Writes pictures and weights into --out. A stopped run, started again, goes on from its last checkpoint, bit for bit.
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import nn
from tqdm import tqdm

import vq_components as vq

CROP, CODEBOOK_SIZE, CHECKPOINT_EVERY = 64, 1024, 100
BATCH, BATCH_WITH_LPIPS = 16, 4  # a crop takes ten times as long once LPIPS looks at it


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
    generator, crops = torch.Generator().manual_seed(seed), []
    for _ in range(number):
        photo = photos[torch.randint(len(photos), (), generator=generator)]
        size = int(CROP * (1 + torch.rand((), generator=generator) ** 3))
        top, left = (int(torch.randint(n - size + 1, (), generator=generator)) for n in photo.shape[1:])
        crop = nn.functional.interpolate(photo[None, :, top : top + size, left : left + size], CROP, mode="area")[0]
        crop = crop[torch.randperm(3, generator=generator)]  # there are few greens in these photographs
        gamma = torch.exp(0.2 * torch.randn(3, 1, 1, generator=generator))
        crops.append(((crop + 1) / 2).clamp(0, 1) ** gamma * 2 - 1)
    return torch.stack(crops)


class _Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def build(steps, w=64):
    """The tokenizer, of width ``w``, its loss, and an optimizer for each of the two players."""
    # For minutes on a CPU. vq.Encoder and vq.Decoder are deeper and normalize: they need longer to get as far.
    blocks = [_Residual(nn.SiLU(), nn.Conv2d(w, w, 3, 1, 1), nn.SiLU(), nn.Conv2d(w, w, 1)) for _ in range(7)]
    encoder = [nn.Conv2d(3, w, 4, 2, 1), nn.SiLU(), nn.Conv2d(w, w, 4, 2, 1), *blocks[:3]]
    decoder = [*blocks[3:], nn.Upsample(scale_factor=2), nn.Conv2d(w, w, 3, 1, 1), nn.SiLU()]
    decoder += [nn.Conv2d(w, 12, 3, 1, 1), nn.PixelShuffle(2), nn.Hardtanh(-1.5, 1.5)]  # as far as LPIPS goes
    quantizer = vq.EMAVectorQuantizer(CODEBOOK_SIZE, 16, decay=0.95)
    model = vq.VQModel(nn.Sequential(*encoder), quantizer, nn.Sequential(*decoder), z_channels=w)
    settings = {"disc_ndf": 16, "disc_num_layers": 2, "disc_weight": 0.05, "perceptual_weight": 0.0}
    settings |= {"disc_start": steps * 7 // 10, "gen_start": steps * 8 // 10, "gen_ramp": steps // 20}
    try:
        loss = vq.VQLPIPSWithDiscriminator(perceptual=vq.LPIPSLoss("vgg"), **settings)
    except OSError as error:
        print(f"Training without LPIPS: {str(error).splitlines()[0]}")
        loss = vq.VQLPIPSWithDiscriminator(**settings)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    optimizers = [optimizer, torch.optim.AdamW(loss.discriminator.parameters(), lr=1e-3, betas=(0.5, 0.9))]
    model.update_after(optimizers[0])
    return model, loss, optimizers


def train(model, loss, optimizers, photos, steps, out):
    """Trains up to step ``steps``, from the last checkpoint if there is one; returns the history of the terms."""
    path, history, parts = out / f"checkpoint-of-{steps}.pt", [], [model, loss.discriminator, *optimizers]
    if path.exists():
        saved = torch.load(path, weights_only=True)
        history = saved["history"]
        for part, state in zip(parts, saved["parts"], strict=True):
            part.load_state_dict(state)
    for step in tqdm(range(len(history), steps), initial=len(history), total=steps, desc="training"):
        decay = 0.05 + 0.95 * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimizers[0].param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * decay
        loss.perceptual_weight = 1.0 if loss.perceptual is not None and step >= steps * 0.25 else 0.0
        if step >= steps * 0.9:
            model.quantize.revival = None  # the last tenth leaves the codebook to the data
        images = random_crops(photos, BATCH_WITH_LPIPS if loss.perceptual_weight else BATCH, seed=step)
        output = model(images)
        extra = {"quantizer_loss": output.loss, "last_layer": model.decoder[-3].weight, "step": step}
        generator = loss.generator_loss(images, output.reconstructions, **extra)
        discriminator = loss.discriminator_loss(images, output.reconstructions, step=step)
        for optimizer, player in zip(optimizers, (generator, discriminator), strict=True):
            optimizer.zero_grad()
            player.loss.backward()
            optimizer.step()
        history.append({key: v.item() for key, v in (output.terms | generator.terms | discriminator.terms).items()})
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            torch.save({"parts": [part.state_dict() for part in parts], "history": history}, out / "unfinished.pt")
            (out / "unfinished.pt").replace(path)  # a kill leaves the old checkpoint or the new one
    return history


@torch.no_grad()
def evaluate(model, loss, photos, out):
    """Prints quality on two photographs never trained on, and the use of the codebook; draws both."""
    model.eval()
    held_out = [to_image(array)[None, :, : array.shape[0] // 4 * 4] for array in load_sample_images().images]
    pairs = [(photo, model(photo).reconstructions.clamp(-1, 1)) for photo in held_out]
    print(f"held-out PSNR: {np.mean([10 * math.log10(4 / (a - b).square().mean()) for a, b in pairs]):.2f} dB")
    if loss.perceptual is not None:
        print(f"held-out LPIPS (VGG16): {np.mean([loss.perceptual(*pair).item() for pair in pairs]):.3f}")
    grid = torch.cat([torch.cat(pair, dim=2) for pair in pairs], dim=3)[0]  # photographs over reconstructions
    plt.imsave(out / "reconstructions.png", ((grid + 1) / 2).permute(1, 2, 0).numpy())
    tokens = torch.cat([model.encode(random_crops(photos, 16, seed=2**40 + i)).flatten() for i in range(48)])
    usage, perplexity = (f(tokens, CODEBOOK_SIZE) for f in (vq.functional.codebook_usage, vq.functional.perplexity))
    print(f"codebook usage on fresh crops: {usage:.1%}, perplexity {perplexity:.0f} of {CODEBOOK_SIZE}")
    plt.figure(layout="constrained").add_subplot(yscale="log", xlabel="entries, by rank", ylabel="tokens")
    plt.plot(tokens.bincount(minlength=CODEBOOK_SIZE).sort(descending=True).values)
    plt.savefig(out / "codebook.png")


def main():
    """Trains, or goes on training, then evaluates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--out", type=Path, default=Path("runs/tokenizer"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model, loss, optimizers = build(arguments.steps)
    photos = training_photos()
    history = train(model, loss, optimizers, photos, arguments.steps, arguments.out)
    save_file(model.state_dict(), arguments.out / "tokenizer.safetensors")
    evaluate(model, loss, photos, arguments.out)
    plt.figure(figsize=(12, 6), layout="constrained")
    names = ("pixel", "perceptual", "generator", "adaptive_weight", "perplexity", "discriminator")
    for place, name in enumerate(names, start=1):
        plt.subplot(2, 3, place, title=name, xlabel="step").plot([terms[name] for terms in history])
    plt.savefig(arguments.out / "curves.png")


if __name__ == "__main__":
    main()
