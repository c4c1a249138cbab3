"""Quality of quantizers with a large codebook, ours and others', as held-out PSNR and usage of one small autoencoder.

    python tests/benchmarks/codebook_quality.py [--only NAME ...] [--codebook-size 4096] [--seeds 3] [--split test]

Every quantizer gets the same autoencoder, crops, steps and seeds. Revival stops for the last tenth of the steps. Then
each is evaluated on 48 batches of crops: fresh ones of the training photos, and ones of photos that were held out.
"PSNR" is that of the mean squared error over all crops, "of crops" the mean of each crop's, as papers give it: a few
crops of what training never showed decide the first. "Unquantized" is the held-out PSNR where the trained decoder gets
the latents themselves: what is missing from it to the run without a quantizer is lost in training, what is missing from
the PSNR to it is lost to the codebook.
Results are kept in ``--out``, so that a run that was interrupted goes on where it stopped. ``--split`` says which
photos are held out: what is chosen by the numbers of others than ``test`` has not seen the test photos.

Photos are those inside scikit-image, scikit-learn and matplotlib. Peers that cannot be imported are left out, with a
word: see requirements-peers.txt.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
from original import import_original
from photos_and_networks import DIM, NETWORKS, SPLITS, Autoencoder, crops, load_photos
from torch import nn
from torch.nn import functional as F

import vq_components as vq
from vq_components.functional import codebook_usage, perplexity

EVALUATED = 48  # batches
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
        self.quantizer = import_original("vqvae.quantize").VectorQuantizer2(codebook_size, DIM, beta=0.25)

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


def learning_rate(step, steps):
    """Share of the full rate: warm-up over a twentieth of the steps, then a cosine to zero."""
    warmup = max(steps // 20, 1)
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * max(step - warmup, 0) / (steps - warmup))))


def train(make_quantizer, photos, settings, seed):
    """The trained model and the seconds that a step took."""
    torch.manual_seed(seed)
    model = Autoencoder(settings.network, nn.Identity())
    model.quantizer = make_quantizer()  # after the autoencoder, which then starts from the same weights in each run
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steps = settings.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for step in range(steps):
        if step == steps - steps // 10:
            model.quantizer.stop_revival()
        images = crops(photos, generator, settings.batch)
        reconstructions, _, loss = model(images)
        optimizer.zero_grad()
        (F.mse_loss(reconstructions, images) + loss.sum()).backward()
        optimizer.step()
        schedule.step()
    return model, (time.perf_counter() - start) / steps


def psnr(square):
    """In dB, of mean squared errors of images in ``[-1, 1]``."""
    return 10 * torch.log10(4 / square)


def square_errors(reconstructions, images):
    """The mean squared error of each crop, ``(B,)``."""
    return (reconstructions.clamp(-1, 1) - images).square().mean((1, 2, 3))


@torch.no_grad()
def evaluate(model, photos, settings, seed):
    """PSNR in dB of all crops together and as their mean, the first without quantizing, usage and perplexity."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    squares, unquantized, seen = [], [], []
    for _ in range(EVALUATED):
        images = crops(photos, generator, settings.batch)
        reconstructions, indices, _ = model(images)
        squares.append(square_errors(reconstructions, images))
        unquantized.append(square_errors(model.decoder(model.encoder(images)), images))
        seen.append(indices.flatten().long())
    indices, square = torch.cat(seen), torch.cat(squares)
    return {
        "psnr": psnr(square.mean()).item(),
        "psnr_of_crops": psnr(square).mean().item(),
        "unquantized": psnr(torch.cat(unquantized).mean()).item(),
        "usage": codebook_usage(indices, settings.codebook_size).item(),
        "perplexity": perplexity(indices, settings.codebook_size).item(),
    }


def measure(make_quantizer, settings, seed):
    """One row of the table."""
    photos, held_out = load_photos(settings.split)
    model, seconds = train(make_quantizer, photos, settings, seed)
    return {
        "seconds_per_step": seconds,
        "train": evaluate(model, photos, settings, 1_000_000),
        "held_out": evaluate(model, held_out, settings, 1_000_001),
    }


def report(results):
    """The table, seeds averaged."""
    print(
        "| K | steps | split | network | batch | quantizer | seeds | PSNR | of crops | unquantized | usage "
        "| perplexity | PSNR, train | usage, train | ms a step |"
    )
    print("|---" * 15 + "|")
    groups = {}
    for key, row in results.items():
        groups.setdefault(tuple(key.split(" | ")[:-1]), []).append(row)
    for (name, *setting), rows in groups.items():

        def mean(*path, rows=rows):
            values = rows
            for part in path:
                values = [value[part] for value in values]
            return sum(values) / len(values)

        print(
            f"| {' | '.join(setting)} | {name} | {len(rows)} | {mean('held_out', 'psnr'):.2f} dB "
            f"| {mean('held_out', 'psnr_of_crops'):.2f} dB "
            f"| {mean('held_out', 'unquantized'):.2f} dB | {mean('held_out', 'usage'):.1%} "
            f"| {mean('held_out', 'perplexity'):.0f} | {mean('train', 'psnr'):.2f} dB | {mean('train', 'usage'):.1%} "
            f"| {1000 * mean('seconds_per_step'):.0f} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(QUANTIZERS), metavar="NAME", help=", ".join(QUANTIZERS))
    parser.add_argument("--codebook-size", type=int, default=4096)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--out", type=Path, default=Path("results.json"))
    parser.add_argument("--split", choices=list(SPLITS), default="test", help="which photos are held out")
    parser.add_argument("--network", choices=list(NETWORKS), default="residual")
    parser.add_argument("--batch", type=int, default=16, help="crops in a batch")
    arguments = parser.parse_args()
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    size = arguments.codebook_size
    setting = [str(getattr(arguments, name)) for name in ("codebook_size", "steps", "split", "network", "batch")]
    for seed in range(arguments.seeds):
        for name in arguments.only:
            key = " | ".join([name, *setting, str(seed)])
            if key in results:
                continue
            try:
                QUANTIZERS[name](size)
            except (ImportError, KeyError) as error:
                print(f"{name} is left out: {error!r}")
                continue
            results[key] = measure(lambda name=name: QUANTIZERS[name](size), arguments, seed)
            print(key, json.dumps(results[key]), flush=True)
            partial = arguments.out.with_suffix(".partial")
            partial.write_text(json.dumps(results, indent=1))
            os.replace(partial, arguments.out)
    report(results)


if __name__ == "__main__":
    main()
