"""Search for the nearest entry: products in tiles, and the best of each tile without a second pass over it."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# Scores of one thread's tile: 1 MiB stays in a CPU core's cache; an accelerator wants large launches.
_TILE_ON_CPU = 2**18
_TILE_ELSEWHERE = 2**25
_MOST_COLUMNS = 2**12

# Whether torch.export or torch.onnx.export is looking: what it finds must run where this package's operators do not
# exist. Without this function (torch before 2.7), programs contain the operators.
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


def search(z: Tensor, codebook: Tensor) -> Tensor:
    """:func:`nearest_code` on checked float32 or float64 tensors, for use inside an operator."""
    entries = len(codebook)
    group = min(32, 1 << (max(entries // 32, 1).bit_length() - 1))
    # Products round differently in the last, incomplete block of columns: equal entries would not tie.
    unit = 16 * group
    columns = -(-entries // (-(-entries // _MOST_COLUMNS) * unit)) * unit
    far, origin = _center(codebook)
    # Nothing instead of zero is the same without the work.
    center = None if can_choose(z) and not bool(far) else origin
    best = index = z.new_empty(0)
    with exact_products(z.device.type):
        for left in range(0, entries, columns):
            part = codebook[left : left + columns]
            tile = _to_tile(part if center is None else part - center, columns, group)
            score, column = _best_of_tile(z, center, tile, group)
            if left == 0:
                best, index = score, column
            else:
                # As in max() itself: the first of equal scores wins, and NaN counts as the largest value.
                better = (score > best) | (score.isnan() & ~best.isnan())
                best = torch.where(better, score, best)
                index = torch.where(better, column + left, index)
    return index.clamp_(max=entries - 1)  # a vector that is not finite may have chosen an entry of the padding


def _center(codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The origin of the search ``(D,)``: the mean entry, where the entries are far from zero and close to each other.

    There, both terms of a score would be large, and their rounding errors larger than what sets entries apart.
    Elsewhere it is zero, so that nothing is rounded, and entries that are equally near stay so. Also whether it is far.
    """
    center = codebook.mean(dim=0)
    mean_square = torch.linalg.vector_norm(codebook).square() / codebook.shape[0]
    far = 17 * center.square().sum() > 16 * mean_square  # of four times the spread; False, if an entry is not finite
    return far, torch.where(far, center, 0)


def _to_tile(entries: Tensor, columns: int, group: int) -> Tensor:
    """Entries with ``-|e|^2 / 2`` behind each, padded, as ``(D + 1, columns)`` in an order for :func:`_best_of_tile`.

    The scores are ``group`` rows of ``columns / group``, where row ``r`` has entry ``r`` of each group of neighbors. So
    the maximum over the rows is that of each group, and the first maximum of all is in the first group that has it.
    """
    bias = entries.square().sum(dim=1).mul_(-0.5)
    # An entry that is not finite is never the nearest; inf - inf would make it the first choice.
    finite = bias.isfinite()
    tile = entries.new_zeros(columns, entries.shape[1] + 1)
    tile[:, -1] = -torch.inf
    tile[: len(entries), :-1] = torch.where(finite[:, None], entries, 0)
    tile[: len(entries), -1] = torch.where(finite, bias, -torch.inf)
    return tile.view(columns // group, group, -1).permute(2, 1, 0).reshape(-1, columns)


def _best_of_tile(z: Tensor, center: Tensor | None, tile: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """The highest score of each vector among the entries of a tile, and the number of its entry: the first, if many."""
    number, (width, columns) = len(z), tile.shape
    # Each thread makes and reads scores of its own: between two cores they would travel at the speed of memory.
    threads = torch.get_num_threads() if z.device.type == "cpu" else 1
    most = threads * max(tile_size(z.device.type) // columns, 1)
    rows = max(-(-number // (max(-(-number // most), 1) * threads)), 1)  # of a thread, as equal as can be
    count = threads * rows
    part = z.new_ones(count, width)  # with a 1 behind each vector, the scores are a product alone
    scores = z.new_empty(threads, rows, columns)
    grouped = scores.view(count, group, columns // group)
    maxima = z.new_empty(count, columns // group)
    row = torch.arange(count, device=z.device)
    chosen, index = row.new_empty(count), row.new_empty(-(-number // count) * count)
    best = z.new_empty(len(index))
    for top in range(0, number, count):
        bottom = top + count
        new = z[top:bottom]
        if center is None:
            part[: len(new), :-1] = new
        else:
            torch.sub(new, center, out=part[: len(new), :-1])
        torch.bmm(part.view(threads, rows, width), tile.expand(threads, width, columns), out=scores)
        torch.amax(grouped, dim=1, out=maxima)
        torch.max(maxima, dim=1, out=(best[top:bottom], chosen))
        torch.add(grouped[row, :, chosen].argmax(dim=1), chosen, alpha=group, out=index[top:bottom])
    return best[:number], index[:number]


def plain_search(z: Tensor, codebook: Tensor) -> Tensor:
    """:func:`search` for an exporter: no loop over vectors, whose number it does not know."""
    _, center = _center(codebook)
    z, codebook = z - center, codebook - center
    bias = codebook.square().sum(dim=1, keepdim=True) * -0.5
    finite = bias.isfinite()  # as in _to_tile
    entries = torch.cat([torch.where(finite, codebook, 0), torch.where(finite, bias, -torch.inf)], dim=1)
    return largest_product(torch.cat([z, z.new_ones(z.shape[0], 1)], dim=1), entries)


def largest_product(z: Tensor, entries: Tensor) -> Tensor:
    """Which of ``entries`` ``(K, D)`` has the largest product with each of ``z`` ``(N, D)``: the first, if many.

    In plain operations that any exporter knows, over one tile of entries after the other.
    """
    best = index = z.new_empty(0)
    for left in range(0, entries.shape[0], _MOST_COLUMNS):
        score, column = (z @ entries[left : left + _MOST_COLUMNS].T).max(dim=1)
        if left == 0:
            best, index = score, column
        else:
            index = torch.where(score > best, column + left, index)
            best = torch.maximum(score, best)
    return index


def can_choose(tensor: Tensor) -> bool:
    """Whether work can be left out by values of ``tensor``: on an accelerator, that would wait for it."""
    return tensor.device.type == "cpu"


def tile_size(device_type: str) -> int:
    """Scores of one tile on this kind of device."""
    return _TILE_ON_CPU if device_type == "cpu" else _TILE_ELSEWHERE


@contextlib.contextmanager
def exact_products(device_type: str) -> Iterator[None]:
    """Full float32 matrix products, whatever autocast and the settings for reduced precision say."""
    backends = [getattr(backend, "matmul", None) for backend in (torch.backends.cuda, torch.backends.mkldnn)]
    switches: list[Any] = [matmul for matmul in backends if hasattr(matmul, "fp32_precision")]
    if switches:
        # What is inherited must go on to be: "none" follows the setting above.
        above = {getattr(place, "fp32_precision", None) for place in (torch.backends, torch.backends.mkldnn)}
        saved = [switch.fp32_precision for switch in switches]
        saved = ["none" if value in above else value for value in saved]
    else:  # torch before 2.9 has one switch for all backends
        legacy = torch.get_float32_matmul_precision()
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        if not switches:
            torch.set_float32_matmul_precision("highest")
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for switch, value in zip(switches, saved if switches else [], strict=True):
            switch.fp32_precision = value
        if not switches:
            torch.set_float32_matmul_precision(legacy)
