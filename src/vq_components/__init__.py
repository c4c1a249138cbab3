"""The parts of a VQ-GAN as small, composable PyTorch modules."""

__version__ = "0.1.0"
