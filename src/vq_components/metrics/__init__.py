"""Metrics for training code that uses torchmetrics: the extra ``metrics``."""

try:
    import torchmetrics  # noqa: F401
except ImportError as error:
    raise ImportError(
        "vq_components.metrics needs torchmetrics. Install it with: pip install 'vq-components[metrics]'"
    ) from error

from ._usage import CodebookUsage as CodebookUsage

__all__ = ["CodebookUsage"]
