"""ActNorm: what starts it, what does not, and that it is plain scale and shift from then on."""

import re
import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from vq_components.networks import ActNorm, _discriminator


def batch(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype) * 3 + torch.arange(1.0, shape[1] + 1).view(-1, *(1,) * (len(shape) - 2))


def started(norm):
    return norm.initialized.item() == 1


def is_fresh(norm):
    return not started(norm) and not norm.loc.any() and bool((norm.scale == 1).all())


@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (7, 3), (1, 3, 1, 2)])
def test_first_training_batch_comes_out_standard(shape):
    norm, x = ActNorm(3), batch(*shape)
    y = norm(x).detach()
    assert y.shape == x.shape
    dims = [d for d in range(x.ndim) if d != 1]
    torch.testing.assert_close(y.mean(dims), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.std(dims), torch.ones(3), rtol=1e-5, atol=0)
    torch.testing.assert_close(norm.loc.flatten(), -x.mean(dims))
    torch.testing.assert_close(norm.scale.flatten(), 1 / (x.std(dims) + 1e-6))
    assert started(norm)


def test_later_batches_change_nothing():
    norm = ActNorm(3)
    norm(batch(4, 3, 5, 2))
    loc, scale = norm.loc.clone(), norm.scale.clone()
    x = batch(4, 3, 5, 2)
    for training in (True, False):
        assert torch.equal(norm.train(training)(x), scale * (x + loc))
    assert torch.equal(norm.loc, loc)
    assert torch.equal(norm.scale, scale)


def test_eval_does_not_start_it():
    norm, x = ActNorm(3).eval(), batch(4, 3, 5, 2)
    assert torch.equal(norm(x), x)
    assert is_fresh(norm)


def test_a_saved_start_is_not_repeated():
    norm, resumed = ActNorm(3), ActNorm(3)
    norm(batch(4, 3, 5, 2))
    resumed.load_state_dict(norm.state_dict())
    x = batch(4, 3, 5, 2)
    assert torch.equal(resumed(x), norm(x))


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3), (0, 3, 4, 4), (0, 3)])
def test_a_batch_without_a_spread_does_not_start_it(shape):
    norm, x = ActNorm(3), torch.ones(shape)
    assert torch.equal(norm(x), x)
    assert is_fresh(norm)
    norm(batch(4, 3, 5, 2))
    assert started(norm)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_does_not_start_it(value):
    norm, x = ActNorm(3), batch(4, 3, 5, 2)
    x[2, 1, 0, 0] = value
    norm(x)
    assert is_fresh(norm)
    norm(batch(4, 3, 5, 2))
    assert started(norm)


def test_a_constant_channel_stays_finite():
    norm = ActNorm(2)
    y = norm(torch.full((2, 2, 3, 3), 5.0))
    assert not y.any()
    torch.testing.assert_close(norm.scale.flatten(), torch.full((2,), 1e6))


def test_gradients_are_those_of_scale_and_shift_from_the_first_forward_on():
    norm, weight = ActNorm(3), torch.randn(4, 3, 5, 2)
    for _ in range(2):
        norm.zero_grad()
        x = batch(4, 3, 5, 2).requires_grad_()
        (weight * norm(x)).sum().backward()
        torch.testing.assert_close(x.grad, weight * norm.scale.detach())
        torch.testing.assert_close(norm.loc.grad, (weight * norm.scale.detach()).sum((0, 2, 3), keepdim=True))
        expected = (weight * (x + norm.loc).detach()).sum((0, 2, 3), keepdim=True)
        torch.testing.assert_close(norm.scale.grad, expected)


def test_two_forwards_and_one_backward():
    """The second forward writes to the parameters, which the first one's backward must not mind."""
    norm, x = ActNorm(3), batch(4, 3, 5, 2)
    (norm(x).square().sum() + norm(-x).square().sum()).backward()
    together = norm.loc.grad.clone()
    norm.zero_grad()
    norm(x).square().sum().backward()
    norm(-x).square().sum().backward()
    torch.testing.assert_close(together, norm.loc.grad)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_nothing(use_reentrant):
    norms, x = [ActNorm(3), ActNorm(3)], batch(4, 3, 5, 2)
    for norm, recompute in zip(norms, (True, False), strict=True):
        inputs = x.clone().requires_grad_()
        y = checkpoint(norm, inputs, use_reentrant=use_reentrant) if recompute else norm(inputs)
        y.pow(3).sum().backward()
    for parameter, other in zip(norms[0].parameters(), norms[1].parameters(), strict=True):
        assert torch.equal(parameter, other)
        assert torch.equal(parameter.grad, other.grad)


def test_nothing_asks_the_device_for_a_value():
    """On the meta device there are no values: whatever asked for one would raise."""
    norm = ActNorm(3).to("meta")
    assert norm(torch.empty(4, 3, 5, 2, device="meta")).shape == (4, 3, 5, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_keeps_the_inputs_dtype_and_computes_statistics_in_at_least_float32(dtype):
    x = batch(64, 3, 32, 32).to(dtype)  # 65,536 values: their sum of squares overflows float16
    norm = ActNorm(3)
    assert norm(x).dtype == dtype
    torch.testing.assert_close(norm.loc.double(), -x.double().mean((0, 2, 3), keepdim=True), rtol=1e-5, atol=1e-5)
    std = x.double().std((0, 2, 3)).view(1, 3, 1, 1)
    torch.testing.assert_close(norm.scale.double(), 1 / (std + 1e-6), rtol=1e-5, atol=0)


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1), (4, 0)])
def test_processes_start_from_their_joint_batch(monkeypatch, sizes):
    """Two threads play two processes, each with its share of the batch."""
    x, shares, barrier = batch(4, 3, 5, 2), [], threading.Barrier(2, timeout=10)

    def all_reduce_sum_(tensor):
        shares.append(tensor.clone())
        barrier.wait()
        total = shares[0] + shares[1]
        barrier.wait()
        shares.clear()
        barrier.wait()
        tensor.copy_(total)

    single, norms = ActNorm(3), [ActNorm(3), ActNorm(3)]
    expected = single(x)
    monkeypatch.setattr(_discriminator, "all_reduce_sum_", all_reduce_sum_)
    results = {}
    threads = [
        threading.Thread(target=lambda norm=norm, share=share: results.update({norm: norm(share)}))
        for norm, share in zip(norms, x.split(sizes), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(torch.cat([results[norm] for norm in norms]), expected)
    for norm in norms:
        assert started(norm)
        torch.testing.assert_close(norm.scale, single.scale)
        assert torch.equal(norm.scale, norms[0].scale)


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (3,), (2, 3, 4), (4, 5, 2, 3)])
def test_says_what_is_wrong(shape):
    text = (
        f"ActNorm normalizes 3 channels of (B, C, H, W) or (B, C), but got shape {shape}. "
        f"Reorder the dimensions, or change num_features."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        ActNorm(3)(torch.zeros(shape))


def test_constructor_wants_a_positive_number():
    with pytest.raises(
        ValueError, match=r"^ActNorm needs a positive num_features, but got num_features=0\. Pass 1 or more\.$"
    ):
        ActNorm(0)
