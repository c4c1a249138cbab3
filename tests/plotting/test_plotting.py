"""What is in the pictures, read back from their artists."""

import math

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from vq_components.plotting import plot_codebook, plot_reconstructions, plot_tokens, plot_usage

mpl.use("agg")


def picture(axes):
    (image,) = axes.get_images()
    return np.asarray(image.get_array())


def test_usage_is_sorted_and_counted():
    figure, axes = plot_usage(torch.tensor([1, 0, 7, 2]))
    assert axes.patches[0].get_data().values.tolist() == [7, 2, 1, 0]
    assert axes.get_title() == "3 of 4 entries in use"
    figure.canvas.draw()


def test_codebook_is_drawn_in_the_plane_of_most_variance():
    turn, _ = torch.linalg.qr(torch.randn(6, 6))
    plane = torch.randn(500, 2) * torch.tensor([5.0, 2.0])
    latents = torch.cat([plane, 1e-3 * torch.randn(500, 4)], dim=1) @ turn
    figure, axes = plot_codebook(latents[:40], latents, counts=torch.tensor([0] * 10 + [1] * 30))
    cloud, used, dead = (np.asarray(part.get_offsets()) for part in axes.collections)
    assert (len(cloud), len(used), len(dead)) == (500, 30, 10)
    centered = plane - plane.mean(dim=0)
    distances = torch.cdist(centered, centered)  # the drawing is the plane, turned or mirrored
    torch.testing.assert_close(torch.cdist(*2 * [torch.from_numpy(cloud).float()]), distances, atol=0.02, rtol=0)
    np.testing.assert_allclose(np.concatenate([dead, used]), cloud[:40], atol=1e-4)
    assert cloud[:, 0].std() > cloud[:, 1].std()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["latents", "entries", "dead entries"]
    figure.canvas.draw()


def test_codebook_of_one_dimension_and_of_one_entry():
    for codebook in (torch.randn(5, 1), torch.randn(1, 3)):
        plot_codebook(codebook)[0].canvas.draw()


def test_token_maps_have_a_color_for_each_entry():
    indices = torch.stack([torch.arange(16).view(4, 4), torch.full((4, 4), -1)])
    shown = picture(plot_tokens(indices)[1])
    assert shown.shape == (4, 9, 3)
    assert len(np.unique(shown[:, :4].reshape(16, 3), axis=0)) == 16
    assert (shown[:, 4:] == 1).all()
    assert (picture(plot_tokens(indices[0])[1]) == shown[:, :4]).all()


def test_reconstructions_are_under_their_images():
    images = torch.linspace(-1, 1, 3).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    shown = picture(plot_reconstructions(images, 3 * images, columns=2)[1])
    assert shown.shape == (11, 5, 3)
    np.testing.assert_allclose(shown[0, [0, 3], 0], [0, 0.5])
    np.testing.assert_allclose(shown[3, [0, 3], 0], [0, 0.5])
    np.testing.assert_allclose([shown[6, 0, 0], shown[9, 0, 0]], [1, 1])
    assert (shown[:, 2] == 1).all()


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plot_usage(torch.tensor([1, 2]), ax=ax),
        lambda ax: plot_codebook(torch.randn(4, 3), ax=ax),
        lambda ax: plot_tokens(torch.zeros(2, 2, dtype=torch.int64), ax=ax),
        lambda ax: plot_reconstructions(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), ax=ax),
    ],
)
def test_draws_into_given_axes(draw):
    figure = Figure()
    axes = figure.add_subplot()
    assert draw(axes) == (figure, axes)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            ValueError,
            "plot_usage draws the counts of one codebook, of shape (K,), but got (2, 3). "
            "Of several stages, draw each by itself.",
            lambda: plot_usage(torch.zeros(2, 3)),
        ),
        (
            ValueError,
            "plot_codebook draws entries (K, D) and latents (N, D), but got shapes (4, 3) and (4, 2). "
            "Flatten latents to vectors.",
            lambda: plot_codebook(torch.zeros(4, 3), torch.zeros(4, 2)),
        ),
        (
            ValueError,
            "plot_codebook takes one count for each of 4 entries, but got shape (3,).",
            lambda: plot_codebook(torch.zeros(4, 3), counts=torch.zeros(3)),
        ),
        (
            ValueError,
            "plot_codebook draws finite vectors, but got NaN or infinite values. Leave them out.",
            lambda: plot_codebook(torch.full((4, 3), math.nan)),
        ),
        (
            TypeError,
            "plot_tokens draws integer indices, but got torch.float32. Convert them with .long().",
            lambda: plot_tokens(torch.zeros(2, 2)),
        ),
        (
            ValueError,
            "plot_tokens draws token maps (h, w) or (B, h, w), but got shape (4,). "
            "Of several stages, draw each by itself.",
            lambda: plot_tokens(torch.zeros(4, dtype=torch.int64)),
        ),
        (
            ValueError,
            "plot_reconstructions draws images and reconstructions of one shape (B, C, H, W), C being 1 or 3, "
            "but got (1, 3, 2, 2) and (1, 3, 2, 3).",
            lambda: plot_reconstructions(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 3)),
        ),
        (
            ValueError,
            "plot_reconstructions needs at least one column, but got columns=0.",
            lambda: plot_reconstructions(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), columns=0),
        ),
    ],
)
def test_says_what_does_not_fit(error, message, call):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
