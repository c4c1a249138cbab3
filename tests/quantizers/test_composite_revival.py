"""``revival`` of a quantizer made of quantizers is that of its parts."""

import pytest

from vq_components import (
    FSQ,
    DeadCodeRevival,
    EMAVectorQuantizer,
    GroupedQuantizer,
    ProjectedQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
)


def nested():
    groups = [ResidualQuantizer([VectorQuantizer(8, 4), EMAVectorQuantizer(8, 4)]) for _ in range(2)]
    return ProjectedQuantizer(GroupedQuantizer(groups), dim=6)


def test_setting_it_reaches_all_parts():
    quantizer = nested()
    leaves = [part for part in quantizer.modules() if isinstance(part, (VectorQuantizer, EMAVectorQuantizer))]
    assert len(leaves) == 4
    assert quantizer.revival == DeadCodeRevival()
    for revival in (DeadCodeRevival(threshold=0.1), None):
        quantizer.revival = revival
        assert quantizer.revival == revival
        assert [part.revival for part in leaves] == [revival] * 4


def test_what_is_no_setting_is_refused():
    with pytest.raises(TypeError, match="DeadCodeRevival"):
        nested().revival = True


def test_parts_without_a_codebook_have_nothing_to_revive():
    quantizer = ProjectedQuantizer(FSQ([3, 3]), dim=4)
    quantizer.revival = None
    assert quantizer.revival is None
    with pytest.raises(ValueError, match="none of them has entries that can be revived"):
        quantizer.revival = DeadCodeRevival()
