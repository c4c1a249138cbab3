"""Pictures of codebooks, tokens and reconstructions with matplotlib: the extra ``plots``."""

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError(
        "vq_components.plotting needs matplotlib. Install it with: pip install 'vq-components[plots]'"
    ) from error

from ._codebook import plot_codebook as plot_codebook
from ._codebook import plot_usage as plot_usage
from ._images import plot_reconstructions as plot_reconstructions
from ._images import plot_tokens as plot_tokens

__all__ = ["plot_codebook", "plot_reconstructions", "plot_tokens", "plot_usage"]
