"""Convolutional networks: autoencoder and discriminator."""

from ._autoencoder import Decoder as Decoder
from ._autoencoder import Encoder as Encoder
from ._discriminator import ActNorm as ActNorm
from ._discriminator import NLayerDiscriminator as NLayerDiscriminator

__all__ = ["ActNorm", "Decoder", "Encoder", "NLayerDiscriminator"]
