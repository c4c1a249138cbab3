"""Vector quantization in NumPy float64: slow, one vector and one entry at a time, plain to compare with the papers."""

import numpy as np


def nearest(z, codebook):
    """Index of the entry nearest to each row of ``z``; the first of equally near ones."""
    return np.array([np.argmin([((row - entry) ** 2).sum() for entry in codebook]) for row in z], dtype=np.int64)


def losses_and_gradients(z, codebook, *, commitment_weight, codebook_weight):
    """Loss of van den Oord et al. (2017) as a mean over all numbers, and its gradients for ``z`` and ``codebook``."""
    indices = nearest(z, codebook)
    loss, grad_z, grad_codebook = 0.0, np.zeros_like(z), np.zeros_like(codebook)
    for n, k in enumerate(indices):
        difference = z[n] - codebook[k]
        loss += (commitment_weight + codebook_weight) * (difference**2).sum() / z.size
        grad_z[n] = commitment_weight * 2 * difference / z.size
        grad_codebook[k] -= codebook_weight * 2 * difference / z.size
    return indices, loss, grad_z, grad_codebook


class MovingAverages:
    """A codebook that follows its vectors: appendix A.1 of van den Oord et al. (2017), entry by entry."""

    def __init__(self, entries, *, decay, eps, past):
        """``past``: the weight with which the present entries enter the averages."""
        self.entries = entries.copy()
        self.decay, self.eps = decay, eps
        self.sizes = np.full(len(entries), float(past))
        self.sums = past * entries

    def update(self, z, indices):
        for k in range(len(self.entries)):
            mine = z[indices == k]
            self.sizes[k] = self.decay * self.sizes[k] + (1 - self.decay) * len(mine)
            self.sums[k] = self.decay * self.sums[k] + (1 - self.decay) * mine.sum(axis=0)
            if len(mine) > 0:
                self.entries[k] = (self.sums[k] + self.eps * self.entries[k]) / (self.sizes[k] + self.eps)
