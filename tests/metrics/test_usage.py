"""The usage metric against counts by hand, and its plots."""

import subprocess
import sys

import matplotlib as mpl
import pytest
import torch

from vq_components.metrics import CodebookUsage

mpl.use("agg")


def test_equals_counts_by_hand_over_several_updates():
    metric = CodebookUsage(5)
    metric.update(torch.tensor([[0, 1], [-1, 1]]))
    metric.update(torch.tensor([3], dtype=torch.int32))
    assert metric.counts.tolist() == [1, 2, 0, 1, 0]
    result = metric.compute()
    torch.testing.assert_close(result["usage"], torch.tensor(3 / 5))
    torch.testing.assert_close(result["perplexity"], torch.tensor(2.0 ** (0.25 * 2 + 0.5 * 1 + 0.25 * 2)))
    assert result["dead"] == 2


def test_forward_gives_the_batch_and_reset_forgets():
    metric = CodebookUsage(4)
    metric.update(torch.tensor([0, 1]))
    assert metric(torch.tensor([2]))["dead"] == 3
    assert metric.compute()["dead"] == 1
    metric.reset()
    assert metric.counts.tolist() == [0] * 4


def test_refuses_what_no_codebook_gives():
    with pytest.raises(ValueError, match=r"^CodebookUsage counts at least one entry, but got codebook_size=0\.$"):
        CodebookUsage(0)
    with pytest.raises(ValueError, match=r"^CodebookUsage takes indices in \[0, 4\), or -1 for masked positions, "):
        CodebookUsage(4).update(torch.tensor([4]))
    with pytest.raises(TypeError, match=r"^CodebookUsage takes integer indices, but got torch.float32."):
        CodebookUsage(4).update(torch.tensor([1.0]))


def test_plots_the_counts_or_given_values():
    metric = CodebookUsage(3)
    metric.update(torch.tensor([2, 2, 2, 0]))
    _, axes = metric.plot()
    assert axes.patches[0].get_data().values.tolist() == [3, 1, 0]
    _, axes = metric.plot([metric.compute(), metric.compute()])
    assert {"usage", "perplexity", "dead"} <= set(axes.get_legend_handles_labels()[1])


@pytest.mark.parametrize(
    ("room", "package", "extra"), [("metrics", "torchmetrics", "metrics"), ("plotting", "matplotlib", "plots")]
)
def test_an_absent_extra_is_named(room, package, extra):
    script = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"try: import vq_components.{room}\nexcept ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    expected = f"vq_components.{room} needs {package}. Install it with: pip install 'vq-components[{extra}]'"
    assert run.stdout.strip() == expected
