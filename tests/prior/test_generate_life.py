"""What sampling leaves as it was, and what it refuses."""

import copy

import pytest
import torch
from tqdm import tqdm

from vq_components import ClassLabel, StartToken, generate, generate_windows

LABELS = torch.tensor([0, 2])


def sample(prior, **settings):
    return generate(prior, max_new_tokens=4, conditions=(LABELS,), **settings)


def sample_windows(prior, **settings):
    return generate_windows(prior, grid=(3, 4), window=(2, 2), batch_size=2, conditions=(LABELS,), **settings)


samplers = pytest.mark.parametrize(("sampler", "steps"), [(sample, 4), (sample_windows, 8)])


class Stop(Exception):
    pass


def stopping(steps):
    """A progress that fails after its first step."""
    for step in steps:
        yield step
        raise Stop


@samplers
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_the_model_and_autograd_are_afterwards_as_they_were(build_prior, sampler, steps, fails, grad):
    """Also after an exception, and with every module in a mode of its own."""
    prior = build_prior(gpt={"resid_pdrop": 0.5})
    modules = list(prior.modules())
    for place, module in enumerate(modules):
        module.training = place % 3 == 0
    modes = [module.training for module in modules]
    prior.gpt.head.weight.requires_grad_(False)
    trained = [parameter.requires_grad for parameter in prior.parameters()]
    before = copy.deepcopy(prior.state_dict())
    names = [sorted(vars(module)) for module in modules]
    with torch.set_grad_enabled(grad):
        if fails:
            with pytest.raises(Stop):
                sampler(prior, progress=stopping)
        else:
            assert not sampler(prior).requires_grad
        assert torch.is_grad_enabled() == grad
    assert list(prior.modules()) == modules
    assert [module.training for module in modules] == modes
    assert [parameter.requires_grad for parameter in prior.parameters()] == trained
    assert all(parameter.grad is None for parameter in prior.parameters())
    after = prior.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [sorted(vars(module)) for module in modules] == names


@samplers
def test_the_model_is_in_eval_mode_meanwhile(build_prior, sampler, steps):
    """No dropout, no replaced tokens, no dropped conditions."""
    prior = build_prior(
        gpt={"resid_pdrop": 0.9, "attn_pdrop": 0.9, "embd_pdrop": 0.9}, pkeep=0.1, condition_dropout=0.9
    )
    expected = sampler(prior, temperature=0)
    prior.train()
    assert torch.equal(sampler(prior, temperature=0), expected)


@samplers
def test_a_generator_makes_samples_reproducible_and_spares_the_global_state(build_prior, sampler, steps):
    prior = build_prior(condition_dropout=0.1).train()
    state = torch.get_rng_state()
    first, second, other = (
        sampler(prior, generator=torch.Generator().manual_seed(seed), guidance=1.5) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@samplers
def test_without_a_generator_the_global_state_decides(build_prior, sampler, steps):
    prior, samples = build_prior(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        samples.append(sampler(prior))
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


@samplers
def test_progress_sees_every_step_once(build_prior, sampler, steps):
    """``W + w (H - 1)`` for windows."""
    seen = []

    def progress(iterable):
        assert len(iterable) == steps
        for step in iterable:
            seen.append(step)
            yield step

    sampler(build_prior(), progress=progress)
    assert len(seen) == steps
    bars = []
    sampler(build_prior(), progress=lambda iterable: bars.append(tqdm(iterable, disable=False)) or bars[0])
    assert bars[0].n == bars[0].total == steps


def test_no_new_tokens_are_the_prompt(build_prior, build_gpt):
    prompt = torch.randint(7, (2, 3))
    for result in (
        generate(build_prior(), prompt, max_new_tokens=0, conditions=(LABELS,)),
        generate(build_gpt(), prompt, max_new_tokens=0),
    ):
        assert torch.equal(result, prompt)
        assert result.data_ptr() != prompt.data_ptr()
    assert generate(build_prior(), max_new_tokens=0, conditions=(LABELS,)).shape == (2, 0)


def test_an_empty_batch_has_no_samples(build_prior):
    assert generate(build_prior(), max_new_tokens=3, conditions=(LABELS[:0],)).shape == (0, 3)


def test_the_prompt_is_not_written_to(build_prior):
    prompt = torch.randint(7, (2, 3))
    before = prompt.clone()
    result = generate(build_prior(), prompt, max_new_tokens=2, conditions=(LABELS,))
    result.zero_()
    assert torch.equal(prompt, before)


@pytest.mark.parametrize("embedded", [0, 3])
def test_a_transformers_result_and_embeddings_fit_its_block(build_gpt, embedded):
    gpt, prompt = build_gpt(), torch.zeros(1, 4, dtype=torch.int64)
    settings = {"embeddings": torch.zeros(1, embedded, 8)} if embedded else {}
    assert generate(gpt, prompt, max_new_tokens=8 - embedded, **settings).shape == (1, 12 - embedded)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        generate(gpt, prompt, max_new_tokens=9 - embedded, **settings)
    assert str(error.value) == (
        "generate would need 13 positions, conditions included, but the model's block_size is 12. "
        "Shorten the prompt or sample fewer tokens; for larger images, use generate_windows."
    )


def test_a_priors_image_fits_its_block_without_the_last_token(build_prior):
    prior, prompt = build_prior(), torch.zeros(2, 4, dtype=torch.int64)
    assert generate(prior, prompt, max_new_tokens=8, conditions=(LABELS,)).shape == (2, 12)
    with pytest.raises(ValueError, match=r"^generate would need 13 positions, conditions included, but"):
        generate(prior, prompt, max_new_tokens=9, conditions=(LABELS,))


GUIDANCE = (
    "guidance compares with images without conditions, which this prior never saw. "
    "Train it with condition_dropout, for example 0.1, or leave guidance at 1."
)
BOOL = "allowed_tokens must be bool, True where a token may be sampled, of shape (7,) or (2, 7), but got "


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": 2.0}, GUIDANCE),
        ({"max_new_tokens": -1}, "max_new_tokens must not be negative, but got -1."),
        ({"temperature": -1}, "temperature must be positive, or 0 for the likeliest token, but got -1."),
        ({"top_k": 0}, "top_k must be at least 1, but got 0. Pass None to keep all tokens."),
        ({"top_p": 0}, "top_p must be in (0, 1], but got 0. Pass None to keep all tokens."),
        ({"min_p": 2}, "min_p must be in [0, 1], but got 2. Pass None to keep all tokens."),
        ({"allowed_tokens": torch.ones(10).bool()}, BOOL + "torch.bool of shape (10,)."),
        ({"allowed_tokens": torch.ones(3, 7).bool()}, BOOL + "torch.bool of shape (3, 7)."),
        ({"allowed_tokens": torch.ones(7)}, BOOL + "torch.float32 of shape (7,)."),
        (
            {"allowed_tokens": torch.zeros(7).bool()},
            "allowed_tokens must allow each sequence at least one token, but forbid all somewhere.",
        ),
        (
            {"prompt": torch.zeros(2, 2, 2).long()},
            "generate takes a prompt of shape (B, T), but got (2, 2, 2). Flatten a grid.",
        ),
        (
            {"prompt": torch.zeros(3, 2).long()},
            "Sampling needs one number of sequences, from prompt, conditions, embeddings or batch_size, "
            "but these say [2, 3]. Pass batch_size, or tensors of one batch.",
        ),
        (
            {"batch_size": 5},
            "Sampling needs one number of sequences, from prompt, conditions, embeddings or batch_size, "
            "but these say [2, 5]. Pass batch_size, or tensors of one batch.",
        ),
        (
            {"embeddings": torch.zeros(2, 1, 8)},
            "embeddings go before a MinGPT's tokens; a ConditionalPrior has conditions instead.",
        ),
        (
            {"conditions": LABELS},
            "ConditionalPrior takes a tuple of 1 values, one for each of its conditions (ClassLabel), "
            "but got a tensor. Pass conditions=(value, ...).",
        ),
        (
            {"prompt": torch.full((2, 2), 7)},
            "ConditionalPrior takes tokens in [0, 7), but got values from 7 to 7. "
            "Positions that a mask left out (-1) have no token; a larger codebook needs a larger vocabulary.",
        ),
    ],
)
def test_what_a_prior_cannot_do_is_an_error(build_prior, settings, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        generate(build_prior(ClassLabel(3)), **{"max_new_tokens": 3, "conditions": (LABELS,), **settings})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": 2.0}, "guidance needs a ConditionalPrior, but got a MinGPT. Wrap it in one."),
        ({"conditions": (LABELS,)}, "conditions need a ConditionalPrior, but got a MinGPT. Wrap it in one."),
        (
            {"prompt": None, "batch_size": 2},
            "A MinGPT goes on with at least one token: pass a prompt or embeddings.",
        ),
        (
            {"prompt": None},
            "Sampling needs one number of sequences, from prompt, conditions, embeddings or batch_size, "
            "but these say nothing. Pass batch_size, or tensors of one batch.",
        ),
        (
            {"prompt": torch.full((2, 2), 11)},
            "MinGPT takes tokens in [0, 11), but got values from 11 to 11. "
            "Positions that a mask left out (-1) have no token; a larger codebook needs a larger vocabulary.",
        ),
    ],
)
def test_what_a_transformer_cannot_do_is_an_error(build_gpt, settings, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        generate(build_gpt(), **{"prompt": torch.zeros(2, 2).long(), "max_new_tokens": 3, **settings})
    assert str(error.value) == message


@pytest.mark.parametrize("new", [0, 2])
def test_a_prompt_of_floats_is_an_error(build_gpt, build_prior, new):
    for model in (build_gpt(), build_prior(StartToken())):
        with pytest.raises(TypeError, match=r"takes int64 or int32 tokens, but got torch.float32. Convert them with"):
            generate(model, torch.zeros(2, 2), max_new_tokens=new)


def test_other_models_are_an_error(build_gpt):
    with pytest.raises(TypeError) as error:
        generate(torch.nn.Linear(2, 2), torch.zeros(1, 1).long(), max_new_tokens=1)
    assert str(error.value) == (
        "Tokens are sampled from a MinGPT or a ConditionalPrior, but got Linear. "
        "Pass what a wrapper wraps, such as model.module."
    )


@pytest.mark.parametrize("guidance", [float("nan"), float("inf")])
def test_guidance_that_is_not_finite_is_an_error(build_prior, guidance):
    with pytest.raises(ValueError, match="guidance must be finite, but got"):
        generate(build_prior(condition_dropout=0.1), max_new_tokens=1, conditions=(LABELS,), guidance=guidance)


def test_guidance_without_a_condition_is_an_error(build_prior):
    with pytest.raises(ValueError, match="guidance is toward conditions, but this prior has none that takes a value"):
        generate(build_prior(StartToken(), condition_dropout=0.1), max_new_tokens=1, batch_size=1, guidance=2.0)


@samplers
def test_logits_that_are_not_numbers_are_an_error(build_prior, sampler, steps):
    """A diverged model's tokens would look like any others."""
    prior = build_prior()
    sampler(prior)
    with torch.no_grad():
        prior.gpt.ln_f.bias[0] = float("nan")
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        sampler(prior)
    assert str(error.value) == (
        "The model's logits are not numbers (NaN), so the tokens sampled from them mean nothing. "
        "Look for NaN in its weights: training may have diverged."
    )
