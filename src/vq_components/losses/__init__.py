"""Losses: perceptual distance and the whole VQ-GAN objective."""

from ._parts import LossOutput as LossOutput
from ._perceptual import LPIPSLoss as LPIPSLoss
from ._vqgan import VQGANLoss as VQGANLoss
from ._vqlpips import VQLPIPSWithDiscriminator as VQLPIPSWithDiscriminator

__all__ = ["LPIPSLoss", "LossOutput", "VQGANLoss", "VQLPIPSWithDiscriminator"]
