"""Convolutional networks: autoencoder and discriminator."""
