"""Small bugs for functions that go with a codebook: name, file, what the source says, what the mutant says."""

REG, SEARCH, KMEANS = "functional/_regularizers.py", "functional/_search.py", "functional/_kmeans.py"

# fmt: off
MUTANTS = [
    ("orthogonality: columns at length 1", REG,
     "codebook.dtype, torch.float32)), dim=1)\n        # The diagonal", "codebook.dtype, torch.float32)), dim=0)\n        # The diagonal"),
    ("entropies: no factor 2", REG,
     "scores = (2 * torch.where(live[:, None], z, 0) @", "scores = (torch.where(live[:, None], z, 0) @"),
    ("kmeans: no generator", KMEANS, "generator=generator)[:", "generator=None)[:"),
    ("entropies: masked NaN goes on", REG, "scores = (2 * torch.where(live[:, None], z, 0) @", "scores = (2 * z @"),
    ("kmeans: a start with repetitions", KMEANS,
     "drawn = torch.randperm(vectors.shape[0], generator=generator)[:num_clusters]",
     "drawn = torch.randint(vectors.shape[0], (num_clusters,), generator=generator)"),
    ("kmeans: the farthest vector is passed over", KMEANS, "(empty.cumsum(0) - 1).clamp(min=0)", "empty.cumsum(0)"),
    ("search: an index of the padding", SEARCH, "return index.clamp_(max=entries - 1)", "return index"),
    ("search: NaN is chosen", SEARCH, "torch.where(finite, bias, -torch.inf)\n    return tile", "bias\n    return tile"),
    ("search: no center", SEARCH, "return far, torch.where(far, center, 0)", "return far & False, torch.zeros_like(center)"),
]
