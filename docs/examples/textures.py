"""Images larger than any that a prior was trained on: textures, and a photograph from its low-resolution version.

    python docs/examples/textures.py [--steps 900] [--size 256] [--out runs/textures]

textures.png: two textures above what is generated; photo.png: low resolution, what is generated from it, truth.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import skimage.data
import torch
from torch import nn
from tqdm import tqdm

import vq_components as vq

TEXTURES, CODEBOOK_SIZE = ("brick", "hubble_deep_field"), 128
PIXELS, WINDOW = 4, 8  # a token stands for PIXELS x PIXELS pixels; a prior sees WINDOW x WINDOW tokens


def load(name):
    """A picture that is inside the scikit-image package, as (C, 512, 512) in [-1, 1]."""
    return torch.tensor(getattr(skimage.data, name)()[:512, :512]).view(512, 512, -1).permute(2, 0, 1) / 127.5 - 1


def random_windows(grids, number, size=WINDOW):
    """Windows (number, size, size, ...) of grids (N, H, W, ...) at random places, and the numbers of their grids."""
    rows, columns = (torch.randint(n - size + 1, (number, 1)) + torch.arange(size) for n in grids.shape[1:3])
    chosen = torch.randint(len(grids), (number,))
    return grids[chosen[:, None, None], rows[:, :, None], columns[:, None, :]], chosen


def optimize(parameters, loss_of, *, steps, title):
    """Minimizes ``loss_of()``, which draws a batch of its own."""
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, cycle_momentum=False)
    for _ in tqdm(range(steps), desc=title):
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()
        schedule.step()


def train_tokenizer(images, steps, width=64):
    """A tokenizer of images (N, C, H, W), trained on crops of theirs by the squared error alone."""
    first, second = nn.Conv2d(images.shape[1], width, 4, 2, 1), nn.Conv2d(width, width, 4, 2, 1)
    encoder = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU())
    first, second = nn.ConvTranspose2d(width, width, 4, 2, 1), nn.ConvTranspose2d(width, images.shape[1], 4, 2, 1)
    decoder = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), first, nn.SiLU(), second)
    model = vq.VQModel(encoder, vq.EMAVectorQuantizer(CODEBOOK_SIZE, 16, decay=0.95), decoder, z_channels=width)

    def loss_of_crops():
        crops = random_windows(images.movedim(1, 3), 8, 64)[0].movedim(3, 1)
        reconstructions, _, quantizer_loss, _ = model(crops)
        return nn.functional.mse_loss(reconstructions, crops) + quantizer_loss

    optimize(model.parameters(), loss_of_crops, steps=1 + steps // 3, title="tokenizer")
    return model.eval()


def shifted_grids(model, images):
    """Tokens (16 N, h, w) of images (N, C, H, W) at all shifts by less than a token, those of an image together."""
    # Windows are cut from these, not from the pixels: the borders of a crop would show in its tokens.
    grids = [model.encode(images[..., y : y - PIXELS, x : x - PIXELS]) for y in range(PIXELS) for x in range(PIXELS)]
    return torch.stack(grids, dim=1).flatten(0, 1)


def train_prior(condition, draw, grids, tokenizer, steps):
    """A prior of what ``draw`` returns, tokens and conditions, of the first of two grids; the second is held out."""
    vocab_size = vq.ConditionalPrior.vocab_size(image_vocab=CODEBOOK_SIZE, conditions=(condition,))
    gpt = vq.MinGPT(vocab_size, 2 * WINDOW**2, n_layer=4, n_head=4, n_embd=128, embd_pdrop=0.1, resid_pdrop=0.1)
    gpt.start_embedding_(tokenizer.quantize.codebook)
    prior = vq.ConditionalPrior(gpt, image_vocab=CODEBOOK_SIZE, conditions=(condition,), pkeep=0.9)  # to mend errors
    optimize(gpt.parameter_groups(0.1), lambda: prior(*draw(grids[0], 32)).loss, steps=steps, title="prior")
    tokens, values = draw(grids[1], 200)
    counts = 1 + torch.bincount(draw(grids[0], 2000)[0].flatten(), minlength=CODEBOOK_SIZE)
    unigram = (counts.sum() / counts).log2()[tokens].mean()
    bits = prior.eval().requires_grad_(False)(tokens, values).bits_per_token
    print(f"bits per token never trained on: {bits:.2f}; by the tokens' frequencies alone: {unigram:.2f}")
    return prior


@torch.no_grad()
def sample(prior, tokenizer, grid, value, top_p):
    """Images of a grid of tokens; prints the mean jump at multiples of the window over that at all tokens' borders."""
    settings = {"batch_size": len(value), "conditions": (value,), "top_p": top_p, "progress": tqdm}
    images = tokenizer.decode(vq.generate_windows(prior, grid=grid, window=(WINDOW, WINDOW), **settings)).clamp(-1, 1)
    for dim in (2, 3):
        jumps = images.diff(dim=dim).abs().movedim(dim, 0).flatten(1).mean(dim=1)[PIXELS - 1 :: PIXELS]
        print(f"seams along dimension {dim}, 1 is none: {jumps[WINDOW - 1 :: WINDOW].mean() / jumps.mean():.2f}")
    return images


def save_picture(path, *rows):
    """Writes rows of images (C, H, W) in [-1, 1] as one PNG."""
    picture = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1).expand(3, -1, -1)
    plt.imsave(path, (picture / 2 + 0.5).permute(1, 2, 0).numpy())


def make_textures(steps, size, out):
    """One prior for gray textures at half their resolution, by number; the lower quarters are held out."""
    images = nn.functional.avg_pool2d(torch.stack([load(name).mean(dim=0, keepdim=True) for name in TEXTURES]), 2)
    parts = [torch.cat([part, part.flip(2), part.flip(3), part.flip(2, 3)]) for part in images.split(192, dim=2)]
    tokenizer = train_tokenizer(parts[0], steps)
    grids = [shifted_grids(tokenizer, part) for part in parts]

    def draw(grids, number):
        tokens, chosen = random_windows(grids, number)
        return tokens, (chosen // PIXELS**2 % len(TEXTURES),)  # a grid for each shift of each image

    prior = train_prior(vq.ClassLabel(len(TEXTURES)), draw, grids, tokenizer, steps)
    generated = sample(prior, tokenizer, (size // PIXELS, size // PIXELS), torch.arange(len(TEXTURES)), 0.99)
    save_picture(out / "textures.png", nn.functional.pad(images, (0, size - 256, 0, size - 256)), generated)


def make_photo(steps, size, out):
    """The right part of a photograph, given it at a low resolution: the tokens of a place are given those of there."""
    photo = load("immunohistochemistry")[None]
    pictures = [photo, nn.functional.interpolate(nn.functional.avg_pool2d(photo, 8), (512, 512), mode="bilinear")]
    left, right = ([picture[..., part] for picture in pictures] for part in (slice(320), slice(320, None)))
    tokenizers = [train_tokenizer(picture, steps) for picture in left]
    pairs = [torch.stack([*map(shifted_grids, tokenizers, side)], dim=3) for side in (left, right)]

    def draw(grids, number):
        tokens, low_tokens = random_windows(grids, number)[0].unbind(dim=3)
        return tokens, (low_tokens,)

    prior = train_prior(vq.SpatialTokens(CODEBOOK_SIZE), draw, pairs, tokenizers[0], steps)
    truth, given = (picture[:, :, :size] for picture in right)
    value = tokenizers[1].encode(given)
    save_picture(out / "photo.png", [given[0], sample(prior, tokenizers[0], value.shape[1:], value, 0.95)[0], truth[0]])


def main():
    """Trains tokenizers and priors, and generates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=900, help="of each prior; a tokenizer takes a third")
    parser.add_argument("--size", type=int, default=256, help="height of what is generated, in pixels")
    parser.add_argument("--out", type=Path, default=Path("runs/textures"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    make_textures(**vars(arguments))
    make_photo(**vars(arguments))


if __name__ == "__main__":
    main()
