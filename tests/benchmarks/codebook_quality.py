"""Quality of quantizers with a large codebook, ours and others', as held-out PSNR and usage of one small autoencoder.

    python tests/benchmarks/codebook_quality.py [--only NAME ...] [--codebook-size 4096] [--seeds 3] [--tune]

Every quantizer gets the same autoencoder, crops, steps and seeds. Revival stops for the last tenth of the steps. Then
each is evaluated on 48 batches of 16 crops: fresh ones of the training photos, and ones of photos that were held out.
Results are kept in ``--out``, so that a run that was interrupted goes on where it stopped. ``--tune`` holds out one of
the training photos instead of the test photos: what is chosen by its numbers has not seen the test photos.

Photos are those inside scikit-image and scikit-learn. Peers that cannot be imported are left out, with a word: see
requirements-peers.txt.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import vq_components as vq
from vq_components.functional import codebook_usage, perplexity

CHANNELS, DIM, CROP, BATCH = 48, 16, 64, 16
EVALUATED, TUNING_PHOTO = 48, "astronaut"  # batches, and the photo that --tune holds out
FSQ_LEVELS = {1024: [8, 5, 5, 5], 4096: [7, 5, 5, 5, 5], 16384: [8, 8, 8, 6, 5]}  # of Mentzer et al. (2023), about K


class Ours(nn.Module):
    """Adapts a quantizer of this package: ``(quantized, indices, loss)``, and a way to stop revival."""

    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z):
        return self.quantizer(z)[:3]

    def stop_revival(self):
        self.quantizer.revival = None


class Original(nn.Module):
    """The class of the VQ-GAN code, with its defaults."""

    def __init__(self, codebook_size):
        super().__init__()
        import transformers

        transformers.top_k_top_p_filtering = None  # the package imports it; nothing here uses it
        from taming.modules.vqvae.quantize import VectorQuantizer2

        self.quantizer = VectorQuantizer2(codebook_size, DIM, beta=0.25)

    def forward(self, z):
        quantized, loss, (_, _, indices) = self.quantizer(z)
        return quantized, indices, loss

    def stop_revival(self):
        pass


class Lucidrains(nn.Module):
    """The quantizers of vector-quantize-pytorch."""

    def __init__(self, codebook_size, **settings):
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        self.quantizer = VectorQuantize(DIM, codebook_size, accept_image_fmap=True, **settings)

    def forward(self, z):
        return self.quantizer(z)

    def stop_revival(self):
        self.quantizer._codebook.has_dead_code_replacement = False


class FiniteScalars(nn.Module):
    """FSQ of vector-quantize-pytorch, projected from and to the same width."""

    def __init__(self, codebook_size):
        super().__init__()
        from vector_quantize_pytorch import FSQ

        self.quantizer = FSQ(FSQ_LEVELS[codebook_size], dim=DIM)

    def forward(self, z):
        return *self.quantizer(z), z.new_zeros(())

    def stop_revival(self):
        pass


class Nothing(nn.Module):
    """No quantizer: the ceiling."""

    def forward(self, z):
        return z, torch.zeros_like(z[:, 0], dtype=torch.long), z.new_zeros(())

    def stop_revival(self):
        pass


QUANTIZERS = {
    "VectorQuantizer": lambda size: Ours(vq.VectorQuantizer(size, DIM)),
    "EMAVectorQuantizer": lambda size: Ours(vq.EMAVectorQuantizer(size, DIM)),
    "vector-quantize-pytorch, best": lambda size: Lucidrains(size, kmeans_init=True, threshold_ema_dead_code=2),
    "vector-quantize-pytorch, straight-through": lambda size: Lucidrains(
        size, kmeans_init=True, threshold_ema_dead_code=2, rotation_trick=False
    ),
    "vector-quantize-pytorch, defaults": lambda size: Lucidrains(size),
    "original": Original,
    "FSQ": FiniteScalars,
    "no quantizer": lambda size: Nothing(),
}


class Residual(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, width):
        super().__init__()
        self.branch = nn.Sequential(
            nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1), nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1)
        )

    def forward(self, x):
        return x + self.branch(x)


class Autoencoder(nn.Module):
    """Two stages of stride 2 down and up around a quantizer.

    It must learn fast enough for the quantizer to be what limits it: without one it should be several dB better.
    """

    def __init__(self, quantizer):
        super().__init__()
        width = CHANNELS
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(width, width, 4, 2, 1),
            Residual(width),
            nn.Conv2d(width, DIM, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(DIM, width, 1),
            Residual(width),
            nn.ConvTranspose2d(width, width, 4, 2, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(width, 3, 4, 2, 1),
        )
        self.quantizer = quantizer

    def forward(self, images):
        quantized, indices, loss = self.quantizer(self.encoder(images))
        return self.decoder(quantized), indices, loss


def load_photos(tune):
    """Two lists of photos ``(3, H, W)`` in ``[-1, 1]``: to train on, and held out."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    train = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    train["motorcycle"] = data.stereo_motorcycle()[0]
    held_out = [train.pop(TUNING_PHOTO)] if tune else load_sample_images().images
    return [
        [torch.from_numpy(photo.copy()).permute(2, 0, 1).float() / 127.5 - 1 for photo in photos]
        for photos in (train.values(), held_out)
    ]


def crops(photos, generator):
    """A batch of random crops, ``(16, 3, 64, 64)``; every photo is as likely as another."""
    batch = []
    for _ in range(BATCH):
        photo = photos[int(torch.randint(len(photos), (), generator=generator))]
        top, left = (int(torch.randint(side - CROP + 1, (), generator=generator)) for side in photo.shape[1:])
        batch.append(photo[:, top : top + CROP, left : left + CROP])
    return torch.stack(batch)


def learning_rate(step, steps):
    """Share of the full rate: warm-up over a twentieth of the steps, then a cosine to zero."""
    warmup = max(steps // 20, 1)
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * max(step - warmup, 0) / (steps - warmup))))


def train(make_quantizer, photos, steps, seed):
    """The trained model and the seconds that a step took."""
    torch.manual_seed(seed)
    model = Autoencoder(nn.Identity())
    model.quantizer = make_quantizer()  # after the autoencoder, which then starts from the same weights in each run
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for step in range(steps):
        if step == steps - steps // 10:
            model.quantizer.stop_revival()
        images = crops(photos, generator)
        reconstructions, _, loss = model(images)
        optimizer.zero_grad()
        (F.mse_loss(reconstructions, images) + loss.sum()).backward()
        optimizer.step()
        schedule.step()
    return model, (time.perf_counter() - start) / steps


@torch.no_grad()
def evaluate(model, photos, codebook_size, seed):
    """PSNR in dB, usage and perplexity on 48 batches of crops."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    square, seen = 0.0, []
    for _ in range(EVALUATED):
        images = crops(photos, generator)
        reconstructions, indices, _ = model(images)
        square += F.mse_loss(reconstructions.clamp(-1, 1), images).item() / EVALUATED
        seen.append(indices.flatten().long())
    indices = torch.cat(seen)
    return {
        "psnr": 10 * math.log10(4 / square),
        "usage": codebook_usage(indices, codebook_size).item(),
        "perplexity": perplexity(indices, codebook_size).item(),
    }


def measure(make_quantizer, codebook_size, steps, seed, tune):
    """One row of the table."""
    photos, held_out = load_photos(tune)
    model, seconds = train(make_quantizer, photos, steps, seed)
    return {
        "seconds_per_step": seconds,
        "train": evaluate(model, photos, codebook_size, 1_000_000),
        "held_out": evaluate(model, held_out, codebook_size, 1_000_001),
    }


def report(results):
    """The table, seeds averaged."""
    print("| K | steps | quantizer | seeds | PSNR | usage | perplexity | PSNR, train | usage, train | ms a step |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    groups = {}
    for key, row in results.items():
        groups.setdefault(tuple(key.split(" | ")[:-1]), []).append(row)
    for (name, size, steps, *_), rows in groups.items():

        def mean(*path, rows=rows):
            values = rows
            for part in path:
                values = [value[part] for value in values]
            return sum(values) / len(values)

        print(
            f"| {size} | {steps} | {name} | {len(rows)} | {mean('held_out', 'psnr'):.2f} dB "
            f"| {mean('held_out', 'usage'):.1%} | {mean('held_out', 'perplexity'):.0f} "
            f"| {mean('train', 'psnr'):.2f} dB | {mean('train', 'usage'):.1%} "
            f"| {1000 * mean('seconds_per_step'):.0f} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(QUANTIZERS), metavar="NAME", help=", ".join(QUANTIZERS))
    parser.add_argument("--codebook-size", type=int, default=4096)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--out", type=Path, default=Path("results.json"))
    parser.add_argument("--tune", action="store_true", help=f"hold out {TUNING_PHOTO} instead of the test photos")
    arguments = parser.parse_args()
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    size, steps = arguments.codebook_size, arguments.steps
    for seed in range(arguments.seeds):
        for name in arguments.only:
            key = " | ".join([name, str(size), str(steps), "tune" if arguments.tune else "test", str(seed)])
            if key in results:
                continue
            try:
                QUANTIZERS[name](size)
            except (ImportError, KeyError) as error:
                print(f"{name} is left out: {error!r}")
                continue
            results[key] = measure(lambda name=name: QUANTIZERS[name](size), size, steps, seed, arguments.tune)
            print(key, json.dumps(results[key]), flush=True)
            partial = arguments.out.with_suffix(".partial")
            partial.write_text(json.dumps(results, indent=1))
            os.replace(partial, arguments.out)
    report(results)


if __name__ == "__main__":
    main()
