"""Losses: perceptual distance and the whole VQ-GAN objective."""
