"""Where a picture is drawn."""

from typing import cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def axes_or_new(ax: Axes | None, *, figsize: tuple[float, float] | None = None) -> tuple[Figure, Axes]:
    """The axes and their figure; if None, those of a new figure, which pyplot does not keep alive."""
    if ax is None:
        figure = Figure(figsize=figsize, layout="constrained")
        return figure, figure.add_subplot()
    return cast(Figure, ax.figure), ax
