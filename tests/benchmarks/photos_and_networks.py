"""Photos to train on and to hold out, and small autoencoders: what codebook_quality.py measures in.

A recipe that is chosen in one autoencoder and by one photo fits those: hence several splits and three networks.
"""

from pathlib import Path

import torch
from torch import nn

CHANNELS, DIM, CROP = 48, 16, 64
_FIVE = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle")
# Names of the photos to train on and of those to hold out. Only "test" holds out the two test photos: whatever is
# chosen is chosen by the others.
SPLITS = {
    "test": (_FIVE, ("china", "flower")),
    "astronaut": (_FIVE[1:], ("astronaut",)),
    "astronaut-motorcycle": (("chelsea", "coffee", "rocket"), ("astronaut", "motorcycle")),
    "chelsea-rocket": (("astronaut", "coffee", "motorcycle"), ("chelsea", "rocket")),
    "hopper-tissue": (_FIVE, ("hopper", "immunohistochemistry")),
    "astronaut-chelsea": (("coffee", "rocket", "hopper", "motorcycle"), ("astronaut", "chelsea")),
}


def load_photos(split):
    """Two lists of photos ``(3, H, W)`` in ``[-1, 1]``: to train on, and held out."""
    return [
        [torch.from_numpy(_read(name).copy()).permute(2, 0, 1).float() / 127.5 - 1 for name in names]
        for names in SPLITS[split]
    ]


def _read(name):
    """The pixels of a photo inside scikit-image, scikit-learn or matplotlib, ``(H, W, 3)`` in ``[0, 255]``."""
    from skimage import data, io

    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        return load_sample_image(f"{name}.jpg")
    if name == "hopper":
        import matplotlib

        return io.imread(Path(matplotlib.__file__).parent / "mpl-data/sample_data/grace_hopper.jpg")
    return data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()


def crops(photos, generator, batch):
    """Random crops, ``(batch, 3, 64, 64)``; every photo is as likely as another."""
    chosen = []
    for _ in range(batch):
        photo = photos[int(torch.randint(len(photos), (), generator=generator))]
        top, left = (int(torch.randint(side - CROP + 1, (), generator=generator)) for side in photo.shape[1:])
        chosen.append(photo[:, top : top + CROP, left : left + CROP])
    return torch.stack(chosen)


class Residual(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, width):
        super().__init__()
        self.branch = nn.Sequential(
            nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1), nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1)
        )

    def forward(self, x):
        return x + self.branch(x)


def residual():
    """An encoder and a decoder with a residual block each."""
    width = CHANNELS
    encoder = nn.Sequential(
        nn.Conv2d(3, width, 4, 2, 1),
        nn.SiLU(),
        nn.Conv2d(width, width, 4, 2, 1),
        Residual(width),
        nn.Conv2d(width, DIM, 1),
    )
    decoder = nn.Sequential(
        nn.Conv2d(DIM, width, 1),
        Residual(width),
        nn.ConvTranspose2d(width, width, 4, 2, 1),
        nn.SiLU(),
        nn.ConvTranspose2d(width, 3, 4, 2, 1),
    )
    return encoder, decoder


def plain(norm=nn.Identity):
    """An encoder and a decoder of convolutions and ReLU, with ``norm`` in between."""
    width = CHANNELS

    def then():
        return norm(), nn.ReLU()

    encoder = nn.Sequential(
        *(nn.Conv2d(3, width, 4, 2, 1), *then()),
        *(nn.Conv2d(width, width, 4, 2, 1), *then()),
        *(nn.Conv2d(width, width, 3, 1, 1), *then()),
        nn.Conv2d(width, DIM, 1),
    )
    decoder = nn.Sequential(
        *(nn.Conv2d(DIM, width, 3, 1, 1), *then()),
        *(nn.ConvTranspose2d(width, width, 4, 2, 1), *then()),
        nn.ConvTranspose2d(width, 3, 4, 2, 1),
    )
    return encoder, decoder


def normalized():
    """The plain ones with group normalization."""
    return plain(lambda: nn.GroupNorm(8, CHANNELS))


NETWORKS = {"residual": residual, "plain": plain, "normalized": normalized}


class Autoencoder(nn.Module):
    """Two stages of stride 2 down and up around a quantizer.

    It must learn fast enough for the quantizer to be what limits it: without one it should be several dB better.
    """

    def __init__(self, network, quantizer):
        super().__init__()
        self.encoder, self.decoder = NETWORKS[network]()
        self.quantizer = quantizer

    def forward(self, images):
        quantized, indices, loss = self.quantizer(self.encoder(images))
        return self.decoder(quantized), indices, loss
