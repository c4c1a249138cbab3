"""Sampling in a sliding window, against the plain loop: one position after the other, the whole window each time."""

import functools

import pytest
import torch

from vq_components import ClassLabel, Coordinates, SpatialTokens, StartToken, generate, generate_windows

# Smaller than, equal to, and larger than the window, along one or both sides.
SHAPES = [
    ((1, 1), (1, 1)),
    ((1, 1), (3, 2)),
    ((3, 4), (1, 1)),
    ((2, 3), (4, 4)),
    ((3, 3), (3, 3)),
    ((4, 2), (4, 4)),
    ((2, 7), (4, 4)),
    ((7, 2), (4, 4)),
    ((6, 7), (4, 4)),
    ((6, 7), (3, 3)),
    ((5, 8), (3, 4)),
    ((7, 6), (4, 3)),
    ((5, 9), (2, 2)),
    ((6, 6), (1, 3)),
    ((5, 5), (3, 1)),
    ((4, 5), (4, 4)),
    ((9, 4), (2, 3)),
]
RULES = {"temperature": 0.8, "top_k": 5, "top_p": 0.95}


def source():
    return torch.Generator().manual_seed(5)


def plainly(reference, logits_at, grid, window, *, batch, **rules):
    uniforms = torch.rand(batch, *grid, generator=source())
    with torch.no_grad():
        return reference.windows.sample(
            logits_at, uniforms, functools.partial(reference.sampling.pick_rows, **rules), window=window
        )


def logits_from(prior, values_at):
    """Of a position in a window, from :meth:`forward` on all of it with the window's own values."""

    def logits_at(block, top, left, position):
        return prior(block, values_at(top, left, block.shape[1:])).logits[:, position]

    return logits_at


@pytest.mark.parametrize(("grid", "window"), SHAPES)
@pytest.mark.parametrize("batch", [1, 3])
def test_windows_without_conditions_are_those_of_the_plain_loop(build_prior, reference, grid, window, batch):
    prior = build_prior(StartToken(), block_size=16)
    expected = plainly(reference, logits_from(prior, lambda *_: ()), grid, window, batch=batch)
    sampled = generate_windows(prior, grid=grid, window=window, batch_size=batch, generator=source())
    assert sampled.dtype == torch.int64
    assert torch.equal(sampled, expected)


@pytest.mark.parametrize(("grid", "window"), SHAPES)
def test_general_layers_sample_the_same(build_prior, reference, grid, window):
    """A hook keeps from the fast way for few rows."""
    prior = build_prior(StartToken(), block_size=16)
    prior.gpt.ln_f.register_forward_hook(lambda *_: None)
    expected = plainly(reference, logits_from(prior, lambda *_: ()), grid, window, batch=2)
    sampled = generate_windows(prior, grid=grid, window=window, batch_size=2, generator=source())
    assert torch.equal(sampled, expected)


@pytest.mark.parametrize(("grid", "window"), SHAPES)
@pytest.mark.parametrize("n_unmasked", [0, 3])
def test_labels_and_coordinates_are_those_of_each_window(build_prior, reference, grid, window, n_unmasked):
    prior = build_prior(ClassLabel(3), Coordinates(5), block_size=20, n_unmasked=n_unmasked)
    labels = torch.tensor([0, 2])

    def values_at(top, left, size):
        return labels, reference.windows.coordinates(top, left, size=size, grid=grid, batch=2)

    expected = plainly(reference, logits_from(prior, values_at), grid, window, batch=2)
    sampled = generate_windows(prior, grid=grid, window=window, batch_size=2, conditions=(labels,), generator=source())
    assert torch.equal(sampled, expected)


@pytest.mark.parametrize(
    ("grid", "window", "scale"),
    [
        ((5, 6), (3, 4), {}),
        ((2, 7), (4, 3), {}),
        ((3, 3), (3, 3), {}),
        ((5, 6), (3, 2), {"finer": 2}),
        ((1, 5), (2, 3), {"finer": 2}),
        ((6, 8), (4, 4), {"coarser": 2}),
        ((8, 6), (2, 4), {"coarser": 2}),
        ((2, 8), (4, 4), {"coarser": 2}),
        ((9, 6), (3, 3), {"coarser": 3}),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_spatial_tokens_slide_along(build_prior, reference, grid, window, scale, batch):
    prior = build_prior(SpatialTokens(6), block_size=48)
    factor = scale.get("finer", 1) / scale.get("coarser", 1)
    values = torch.randint(6, (batch, *(round(side * factor) for side in grid)))

    def values_at(top, left, size):
        return (reference.windows.crop(values, top, left, size=tuple(size), **scale),)

    expected = plainly(reference, logits_from(prior, values_at), grid, window, batch=batch)
    sampled = generate_windows(
        prior, grid=grid, window=window, batch_size=batch, conditions=(values,), generator=source()
    )
    assert torch.equal(sampled, expected)


@pytest.mark.parametrize(("grid", "window"), [((6, 7), (4, 3)), ((2, 9), (4, 4)), ((5, 4), (3, 3)), ((3, 3), (4, 4))])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("unmasked", [True, False])
def test_all_together_with_guidance_and_filters(build_prior, reference, grid, window, batch, offset, unmasked):
    """The conditions see each other where they are exactly ``n_unmasked``."""
    guidance, rules = 1.7, RULES
    conditions = (SpatialTokens(4), StartToken(), ClassLabel(3), Coordinates(5))
    size = min(window[0], grid[0]) * min(window[1], grid[1])
    prefix = size + 4
    prior = build_prior(
        *conditions,
        offset=offset,
        condition_dropout=0.1,
        block_size=prefix + size,
        n_unmasked=prefix if unmasked else 0,
    )
    spatial, labels = torch.randint(4, (batch, *grid)), torch.randint(3, (batch,))
    start, nothing = (7 + 4, 7 + 13) if offset else (0, 7)
    free_prefix = torch.full((batch, prefix), nothing)
    free_prefix[:, size] = start

    def values_at(top, left, shape):
        return (
            reference.windows.crop(spatial, top, left, size=tuple(shape)),
            labels,
            reference.windows.coordinates(top, left, size=shape, grid=grid, batch=batch),
        )

    given_at = logits_from(prior, values_at)

    def guided_at(block, top, left, position):
        whole = torch.cat([free_prefix, block.flatten(1)], dim=1)[:, :-1]
        free = prior.gpt(whole)[:, prefix - 1 + position, :7]
        return free + guidance * (given_at(block, top, left, position) - free)

    expected = plainly(reference, guided_at, grid, window, batch=batch, **rules)
    sampled = generate_windows(
        prior,
        grid=grid,
        window=window,
        batch_size=batch,
        conditions=(spatial, labels),
        guidance=guidance,
        generator=source(),
        **rules,
    )
    assert torch.equal(sampled, expected)


@pytest.mark.parametrize("rules", [{"temperature": 0}, {"top_p": 0.5}, {"min_p": 0.4}, {"top_k": 99}])
def test_filters_choose_as_in_the_plain_loop(build_prior, reference, rules):
    prior = build_prior(StartToken())
    expected = plainly(reference, logits_from(prior, lambda *_: ()), (4, 5), (3, 3), batch=2, **rules)
    sampled = generate_windows(prior, grid=(4, 5), window=(3, 3), batch_size=2, generator=source(), **rules)
    assert torch.equal(sampled, expected)


def test_only_allowed_tokens_are_sampled(build_prior):
    allowed = torch.zeros(2, 7, dtype=torch.bool)
    allowed[0, 3] = allowed[1, 5] = True
    sampled = generate_windows(
        build_prior(StartToken()), grid=(3, 4), window=(2, 2), batch_size=2, allowed_tokens=allowed
    )
    assert (sampled[0] == 3).all()
    assert (sampled[1] == 5).all()


@pytest.mark.parametrize("window", [(3, 4), (5, 9)])
def test_a_grid_within_the_window_is_sampled_as_by_generate(build_prior, window):
    prior = build_prior(StartToken())
    sampled = generate_windows(prior, grid=(3, 4), window=window, batch_size=2, generator=source())
    assert torch.equal(sampled.flatten(1), generate(prior, max_new_tokens=12, batch_size=2, generator=source()))


@pytest.mark.parametrize(("grid", "window"), SHAPES)
def test_steps_and_calls_are_few(build_prior, grid, window):
    """Rows run side by side: W + w (H - 1) steps, each with one call for windows that move, and one per border row."""
    prior, calls, steps = build_prior(StartToken(), block_size=16), [], []
    prior.gpt.ln_f.register_forward_hook(lambda *_: calls.append(1))
    width, w = grid[1], min(window[1], grid[1])

    def progress(iterable):
        for step, positions in enumerate(iterable):
            before = len(calls)
            yield positions
            steps.append(len(calls) - before)
            columns = [step - w * row for row in range(grid[0])]
            borders = [c for c in columns if 0 <= c < width and (c <= w // 2 or c >= width - w + w // 2)]
            assert steps[-1] <= 2 + len(borders)

    generate_windows(prior, grid=grid, window=window, progress=progress)
    assert len(steps) == width + w * (grid[0] - 1)
    assert len(calls) <= grid[0] * width


def test_a_standing_window_reads_each_token_once(build_prior):
    """One that is as wide as the grid and as high reads the start token and all tokens but the last, one by one."""
    prior, lengths = build_prior(StartToken()), []
    prior.gpt.ln_f.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    generate_windows(prior, grid=(3, 4), window=(3, 4))
    assert lengths == [1] * 12
