"""Trains a tokenizer and a class-conditional prior on scikit-learn's handwritten digits; a CPU with two cores will do.

    python docs/examples/digits.py [--steps 1200] [--seed 0] [--out runs/digits]

Prints the prior's likelihood of held-out digits next to that of counts; then, of digits held out, reconstructed and
sampled with and without guidance, how many a classifier of real digits recognises as what they should be, and how far
they are from the training digits and from each other. Writes ten of each class of each set into --out, as PNG.
"""

import argparse
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from einops import repeat
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import vq_components as vq

CLASSES, CODES, BATCH = 10, 64, 128
SAMPLINGS = {"samples": {"guidance": 1.5}, "samples_plain": {}}  # no sample is rejected


def load_split():
    """Digits (N, 1, 8, 8) in [-1, 1] with their labels: those to train on, and a fifth held out, always the same."""
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    parts = train_test_split(torch.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return [(images[part].float().view(-1, 1, 8, 8) / 8 - 1, labels[part]) for part in parts]


def distort(images):
    """Each image a little turned, scaled, sheared, shifted and bent: 1,437 digits alone would be learnt by heart."""
    extent = torch.tensor([[0.05, 0.1, 0.06], [0.1, 0.05, 0.06]])
    matrices = torch.eye(2, 3) + extent * (2 * torch.rand(len(images), 2, 3) - 1)
    bend = F.interpolate(0.05 * torch.randn(len(images), 2, 4, 4), images.shape[2:], mode="bicubic")
    places = F.affine_grid(matrices, list(images.shape), align_corners=False) + bend.movedim(1, -1)
    # Beyond the border grid_sample finds 0, which is background once black is 0.
    return (F.grid_sample(images + 1, places, mode="bicubic", align_corners=False) - 1).clamp(-1, 1)


def train(loss_of, optimizer, digits, steps, name):
    """Lowers ``loss_of(images, labels)`` over batches of distorted digits."""
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.08, cycle_momentum=False)
    for _ in tqdm(range(steps), desc=name):
        chosen = torch.randint(len(digits[0]), (BATCH,))
        loss = loss_of(distort(digits[0][chosen]), digits[1][chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def train_tokenizer(digits, steps):
    """A tokenizer from 8 x 8 pixels to 4 x 4 tokens and back, in eval mode."""
    conv, gelu = partial(nn.Conv2d, kernel_size=3, padding=1), nn.GELU()
    down, up = nn.Conv2d(32, 64, 2, stride=2), nn.ConvTranspose2d(64, 32, 2, stride=2)
    encoder = nn.Sequential(conv(1, 32), gelu, down, gelu, conv(64, 64), gelu)
    decoder = nn.Sequential(conv(64, 64), gelu, conv(64, 64), gelu, up, gelu, conv(32, 1))
    model = vq.VQModel(encoder, vq.EMAVectorQuantizer(CODES, 8), decoder, z_channels=64)
    optimizer = torch.optim.AdamW(model.parameters())
    model.update_after(optimizer)

    def loss_of(images, _):
        output = model(images)
        return F.mse_loss(output.reconstructions, images) + output.loss

    train(loss_of, optimizer, digits, steps, "tokenizer")
    return model.eval()


def train_prior(tokenizer, digits, steps):
    """A prior over the 16 tokens given the class, in eval mode."""
    settings = {"image_vocab": CODES, "conditions": (vq.ClassLabel(CLASSES),), "condition_dropout": 0.1}
    dropout = {"embd_pdrop": 0.1, "resid_pdrop": 0.1, "attn_pdrop": 0.1}
    gpt = vq.MinGPT(vq.ConditionalPrior.vocab_size(**settings), 16, n_layer=4, n_head=4, n_embd=96, **dropout)
    prior = vq.ConditionalPrior(gpt, pkeep=0.95, **settings)
    optimizer = torch.optim.AdamW(gpt.parameter_groups(weight_decay=0.1), betas=(0.9, 0.95))
    train(lambda images, labels: prior(tokenizer.encode(images), (labels,)).loss, optimizer, digits, steps, "prior")
    return prior.eval()


def bits_of_counts(known, asked):
    """Bits per token of ``asked`` (tokens, labels) under counts of ``known``, given place, class, upper and left token.

    ``p(s | fine) = (n(fine, s) + alpha * p(s | coarse)) / (n(fine) + alpha)``, each alpha the best one for ``asked``.
    """
    tokens, labels = (torch.cat(pair) for pair in zip(known, asked, strict=True))
    padded = F.pad(tokens, (1, 0, 1, 0), value=CODES)  # with a token of its own for the border
    context = torch.arange(16).view(4, 4) * CLASSES + labels.view(-1, 1, 1)
    tokens, n, guess = tokens.flatten(), known[0].numel(), torch.tensor(1 / CODES)
    for neighbour in (torch.zeros_like(context), padded[:, :-1, 1:], padded[:, 1:, :-1]):
        context = context * (CODES + 1) + neighbour
        values, rows = context.flatten().unique(return_inverse=True)
        counts = torch.bincount(rows[:n] * CODES + tokens[:n], minlength=len(values) * CODES).view(-1, CODES)[rows[n:]]
        hits, total = counts.gather(1, tokens[n:, None])[:, 0], counts.sum(dim=1)
        guesses = [(hits + alpha * guess) / (total + alpha) for alpha in 2.0 ** torch.arange(-6, 16)]
        guess = max(guesses, key=lambda guess: guess.log().sum())
    return -guess.log2().mean()


def pixels(images):
    """Images as scikit-learn has them: rows of 64 grey levels 0 ... 16."""
    return ((images + 1) * 8).round().clamp(0, 16).flatten(1)


@torch.no_grad()
def evaluate(tokenizer, prior, digits, held_out, out):
    """Prints the numbers and writes the pictures."""
    output = tokenizer(held_out[0])
    tokens = torch.cat([tokenizer.encode(distort(digits[0])) for _ in range(30)])
    counts = bits_of_counts((tokens, digits[1].repeat(30)), (output.indices, held_out[1]))
    print(f"bits per token: prior {prior(output.indices, held_out[1:]).bits_per_token:.3f}, counts {counts:.3f}")
    sets = {"held_out": held_out, "reconstructions": (output.reconstructions, held_out[1])}
    labels = torch.arange(CLASSES).repeat_interleave(100)
    for name, settings in SAMPLINGS.items():
        tokens = vq.generate(prior, max_new_tokens=16, conditions=(labels,), **settings)
        sets[name] = (tokenizer.decode(tokens.view(-1, 4, 4)), labels)
    classifier = SVC(gamma=0.001).fit(pixels(digits[0]), digits[1])
    for name, (images, asked) in sets.items():
        classes = [pixels(images[asked == label]) for label in range(CLASSES)]
        apart = torch.stack([F.pdist(rows).mean() for rows in classes]).mean()
        near = torch.cdist(pixels(images), pixels(digits[0])).min(dim=1).values.median()
        share = classifier.score(pixels(images), asked)
        print(f"{name:15} recognised {share:.1%}, to nearest training digit {near:.1f}, within a class {apart:.1f}")
        shown = F.pad(torch.stack([rows[:10] for rows in classes]).view(CLASSES, 10, 8, 8), (1, 1, 1, 1))
        plt.imsave(out / f"{name}.png", repeat(shown, "r c h w -> (r h y) (c w x)", y=6, x=6), cmap="gray")


def main():
    """Trains both models, then evaluates them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200, help="of each of the two trainings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    digits, held_out = load_split()
    tokenizer = train_tokenizer(digits, arguments.steps)
    evaluate(tokenizer, train_prior(tokenizer, digits, arguments.steps), digits, held_out, arguments.out)


if __name__ == "__main__":
    main()
