"""What a new kind of quantizer inherits: tested with a small one that has two indices per vector."""

import pytest
import torch
from torch import nn

from vq_components import AbstractQuantizer, EMAVectorQuantizer, QuantizerOutput
from vq_components.functional import straight_through


class Signs(AbstractQuantizer):
    """Of each vector ``(a, b)``: the two signs as two indices; the output ``(sign a, sign b, 0)`` is one wider."""

    def __init__(self, **settings):
        super().__init__(2, codebook_size=2, dim_out=3, index_shape=(2,), **settings)
        self.dtypes = []

    def _quantize(self, z, live):
        self.dtypes.append((z.dtype, torch.is_autocast_enabled("cpu")))
        indices = (z > 0).long()
        wide = nn.functional.pad(z, (0, 1))
        zero = z.new_zeros(())
        return QuantizerOutput(straight_through(wide, self._decode(indices).to(z.dtype)), indices, zero, {})

    def _decode(self, indices):
        return nn.functional.pad(2.0 * indices - 1, (0, 1))


class Pair(AbstractQuantizer):
    """Two quantizers, of which it uses the first."""

    def __init__(self):
        super().__init__(4, codebook_size=8)
        self.first, self.second = EMAVectorQuantizer(8, 4), EMAVectorQuantizer(8, 4)

    def _quantize(self, z, live):
        return self.first._quantize(z, live)

    def _decode(self, indices):
        return self.first._decode(indices)


@pytest.mark.parametrize(
    ("shape", "channel_dim", "indices", "out"),
    [
        ((5, 2), 1, (5, 2), (5, 3)),
        ((5, 2, 4, 6), 1, (5, 4, 6, 2), (5, 3, 4, 6)),
        ((5, 4, 6, 2), -1, (5, 4, 6, 2), (5, 4, 6, 3)),
        ((0, 2, 4), 1, (0, 4, 2), (0, 3, 4)),
    ],
)
def test_shapes_of_several_indices_and_another_width(shape, channel_dim, indices, out):
    quantizer = Signs(channel_dim=channel_dim)
    z = torch.randn(shape)
    mask = torch.rand([size for n, size in enumerate(shape) if n != channel_dim % len(shape)]) > 0.5
    result = quantizer(z, mask)
    assert result.indices.shape == indices
    assert result.quantized.shape == out
    assert (result.indices[~mask] == -1).all()
    assert torch.equal(result.indices[mask], (z.movedim(channel_dim, -1) > 0).long()[mask])
    assert torch.equal(quantizer.encode(z, mask), result.indices)
    decoded = quantizer.decode(result.indices)
    assert torch.equal(decoded, result.quantized)
    assert not decoded.movedim(channel_dim, -1)[~mask].any()


def test_variants_see_no_half_precision_and_no_autocast():
    quantizer = Signs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            assert quantizer(torch.randn(5, 2, dtype=dtype)).quantized.dtype == dtype
            quantizer.encode(torch.randn(5, 2, dtype=dtype))
    wide = [torch.float32] * 6 + [torch.float64] * 2
    assert quantizer.dtypes == [(dtype, False) for dtype in wide]


def test_attributes_say_what_goes_in_and_out():
    quantizer = Signs(channel_dim=-1)
    assert (quantizer.dim, quantizer.dim_out, quantizer.codebook_size) == (2, 3, 2)
    assert (quantizer.channel_dim, quantizer.index_shape) == (-1, (2,))
    pair = Pair()
    assert (pair.dim, pair.dim_out, pair.codebook_size, pair.channel_dim, pair.index_shape) == (4, 4, 8, 1, ())


def test_indices_of_another_depth_are_refused():
    for shape in [(5,), (5, 3), (2,), (5, 2, 1)]:
        with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
            Signs().decode(torch.zeros(shape, dtype=torch.int64))
        assert str(error.value) == (
            f"Signs decodes indices of shape (B, *space, 2), but got {shape}. Pass them as encode returns them."
        )


def test_updates_reach_the_parts():
    pair, z = Pair(), torch.randn(30, 4)
    pair(z)
    pair.update_()
    for part in (pair.first, pair.second):
        assert part.embedding.update_is_manual
    assert int(pair.first.embedding.updates) == 1
    pair(z)
    assert int(pair.first.embedding.updates) == 1


def test_one_hook_reaches_the_parts():
    pair, z = Pair(), torch.randn(30, 4)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))])
    handle = pair.update_after(optimizer)
    for count in (1, 2):
        for _ in range(3):
            pair(z)
        assert int(pair.first.embedding.updates) == count - 1
        optimizer.step()
        assert int(pair.first.embedding.updates) == count
    handle.remove()
    pair(z)
    pair(z)
    assert int(pair.first.embedding.updates) == 3


def test_the_base_itself_cannot_be_built():
    with pytest.raises(TypeError, match="abstract"):
        AbstractQuantizer(4, codebook_size=8)
