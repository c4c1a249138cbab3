"""Cached sampling, against the plain loop: forward on the whole sequence for every token, in float64."""

import pytest
import torch

from vq_components import ClassLabel, SpatialTokens, StartToken, generate

RULES = [
    {},
    {"temperature": 0},
    {"temperature": 0.5},
    {"top_k": 3},
    {"top_k": 1},
    {"top_k": 1000},
    {"top_p": 0.6},
    {"min_p": 0.3},
    {"temperature": 1.3, "top_k": 6, "top_p": 0.9, "min_p": 0.1},
]


def source():
    return torch.Generator().manual_seed(5)


def uniforms(batch, new):
    """The random numbers that a call with ``source()`` draws."""
    return torch.rand(batch, new, generator=source())


@pytest.mark.parametrize("n_unmasked", [0, 1, 2, 3, 6, 9, 12])
@pytest.mark.parametrize("length", [1, 3, 6])
@pytest.mark.parametrize("watched", [False, True])
def test_a_transformers_continuation_is_that_of_the_plain_loop(build_gpt, reference, n_unmasked, length, watched):
    """Wherever the positions that see each other end: before, in, or behind the prompt, and behind the end."""
    gpt, prompt = build_gpt(n_unmasked=n_unmasked), torch.randint(11, (3, length))
    if watched:  # a hook, and so the general way through the layers
        watch(gpt)
    with torch.no_grad():
        expected = reference.sampling.go_on(lambda tokens: gpt(tokens)[:, -1], prompt, uniforms(3, 12 - length))
    sampled = generate(gpt, prompt, max_new_tokens=12 - length, generator=source())
    assert sampled.dtype == torch.int64
    assert torch.equal(sampled, expected)
    assert torch.equal(sampled[:, :length], prompt)


@pytest.mark.parametrize("n_unmasked", [0, 2, 3, 5, 9, 12])
@pytest.mark.parametrize("length", [0, 1, 3])
def test_embeddings_are_in_front_of_the_prompt(build_gpt, reference, n_unmasked, length):
    """A prompt is not needed behind them; they take positions, and are not in the result."""
    gpt, prompt = build_gpt(n_unmasked=n_unmasked), torch.randint(11, (2, length))
    embeddings, new = torch.randn(2, 3, 8, dtype=torch.float64), 9 - length
    with torch.no_grad():
        expected = reference.sampling.go_on(
            lambda tokens: gpt(tokens, embeddings=embeddings)[:, -1] if tokens.shape[1] else first(gpt, embeddings),
            prompt,
            uniforms(2, new),
        )
    prompts = (prompt, None) if length == 0 else (prompt,)
    for each in prompts:
        sampled = generate(gpt, each, max_new_tokens=new, embeddings=embeddings, generator=source())
        assert torch.equal(sampled, expected)


def first(gpt, embeddings):
    """Logits behind embeddings alone; where a token follows, a position before n_unmasked would see it."""
    return gpt(torch.zeros(len(embeddings), 0, dtype=torch.int64), embeddings=embeddings)[:, -1]


@pytest.mark.parametrize("rules", RULES)
def test_filters_choose_as_in_the_plain_loop(build_gpt, build_prior, reference, rules):
    gpt, prompt = build_gpt(), torch.randint(11, (3, 2))
    with torch.no_grad():
        expected = reference.sampling.go_on(lambda tokens: gpt(tokens)[:, -1], prompt, uniforms(3, 10), **rules)
    assert torch.equal(generate(gpt, prompt, max_new_tokens=10, generator=source(), **rules), expected)


def prior_logits(prior, values):
    """Logits of the next image token, from :meth:`forward` of as many tokens and any one more."""

    def last(tokens):
        more = torch.cat([tokens, torch.zeros(len(tokens), 1, dtype=torch.int64)], dim=1)
        with torch.no_grad():
            return prior(more, values).logits[:, -1]

    return last


@pytest.mark.parametrize("n_unmasked", [0, 1, 3, 6])
@pytest.mark.parametrize("length", [None, 0, 1, 4])
def test_a_priors_images_are_those_of_the_plain_loop(build_prior, reference, n_unmasked, length):
    """To the last position of the block: the conditions, and all tokens but the last."""
    conditions = (ClassLabel(3), SpatialTokens(4), StartToken())
    prior = build_prior(*conditions, n_unmasked=n_unmasked, block_size=13)
    values = (torch.tensor([0, 2]), torch.randint(4, (2, 2, 2)))
    prompt = torch.randint(7, (2, length or 0))
    new = 8 - prompt.shape[1]
    expected = reference.sampling.go_on(prior_logits(prior, values), prompt, uniforms(2, new))
    given = None if length is None else prompt
    sampled = generate(prior, given, max_new_tokens=new, conditions=values, generator=source())
    assert torch.equal(sampled, expected)


def test_a_prior_with_a_start_token_needs_the_number_of_images_alone(build_prior, reference):
    prior = build_prior(StartToken())
    expected = reference.sampling.go_on(prior_logits(prior, ()), torch.zeros(4, 0).long(), uniforms(4, 12))
    assert torch.equal(generate(prior, max_new_tokens=12, batch_size=4, generator=source()), expected)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0, -1.0])
@pytest.mark.parametrize("rules", [{}, {"temperature": 0.7, "top_k": 4}])
def test_guidance_is_that_of_two_separate_passes(build_prior, reference, guidance, rules):
    """The second with all condition's tokens replaced by the last one, but not the start token."""
    conditions = (ClassLabel(3), StartToken(), SpatialTokens(4))
    prior = build_prior(*conditions, condition_dropout=0.1, block_size=20)
    values, prompt = (torch.tensor([0, 2]), torch.randint(4, (2, 2, 2))), torch.randint(7, (2, 2))
    with_conditions = prior_logits(prior, values)
    nothing = torch.tensor([[15, 10, 15, 15, 15, 15]]).repeat(2, 1)  # 7 + 3 + 1 + 4 tokens, and this

    def guided(tokens):
        free = prior.gpt(torch.cat([nothing, tokens], dim=1))[:, -1, :7].detach()
        return free + guidance * (with_conditions(tokens) - free)

    expected = reference.sampling.go_on(guided, prompt, uniforms(2, 8), **rules)
    sampled = generate(
        prior, prompt, max_new_tokens=8, conditions=values, guidance=guidance, generator=source(), **rules
    )
    assert torch.equal(sampled, expected)


def watch(gpt):
    """The shapes ``(B, T)`` that a transformer computes from now on; a hook is respected, so it sees all of them."""
    shapes = []
    gpt.blocks[0].ln1.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[:2])))
    return shapes


def test_guidance_runs_in_one_batch(build_prior):
    prior = build_prior(condition_dropout=0.1)
    sizes = watch(prior.gpt)
    generate(prior, max_new_tokens=4, conditions=(torch.tensor([0, 2, 1]),), guidance=2.0)
    assert sizes == [(6, 1)] * 4


@pytest.mark.parametrize("n_unmasked", [0, 4])
def test_each_position_is_computed_once(build_gpt, n_unmasked):
    """From where the positions that see each other end."""
    gpt = build_gpt(n_unmasked=n_unmasked)
    shapes = watch(gpt)
    generate(gpt, torch.zeros(1, 2, dtype=torch.int64), max_new_tokens=5)
    assert [length for _, length in shapes] == ([2, 1, 1, 1, 1] if n_unmasked == 0 else [2, 3, 4, 1, 1])


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("rules", [{}, {"temperature": 0}, {"top_k": 2}, {"top_p": 0.5}])
def test_only_allowed_tokens_are_sampled(build_gpt, reference, per_row, rules):
    """They are left out before the filters, which then see the allowed ones alone."""
    gpt, prompt = build_gpt(), torch.randint(11, (3, 2))
    allowed = torch.zeros(3, 11, dtype=torch.bool)
    for row, tokens in enumerate([(1, 4, 7), (0, 2, 10), (5,)] if per_row else [(1, 4, 7)] * 3):
        allowed[row, list(tokens)] = True

    def last(tokens):
        return gpt(tokens)[:, -1].detach().masked_fill(~allowed, -torch.inf)

    expected = reference.sampling.go_on(last, prompt, uniforms(3, 10), **rules)
    given = allowed if per_row else allowed[0]
    sampled = generate(gpt, prompt, max_new_tokens=10, allowed_tokens=given, generator=source(), **rules)
    assert torch.equal(sampled, expected)
    assert allowed.gather(1, sampled[:, 2:]).all()


def test_allowed_tokens_and_guidance_go_together(build_prior):
    prior = build_prior(condition_dropout=0.1)
    allowed = torch.tensor([[True] + [False] * 6, [False] * 6 + [True]])
    sampled = generate(
        prior, max_new_tokens=3, conditions=(torch.tensor([0, 1]),), guidance=4.0, allowed_tokens=allowed
    )
    assert sampled.tolist() == [[0, 0, 0], [6, 6, 6]]


@pytest.mark.parametrize("rules", [{}, {"top_p": 0.7}])
def test_the_rest_of_the_batch_does_not_matter(build_prior, monkeypatch, rules):
    """The same random numbers, the same image, alone or among others."""
    prior, labels = build_prior(), torch.tensor([0, 2, 1])
    together = generate(prior, max_new_tokens=8, conditions=(labels,), generator=source(), **rules)
    numbers = uniforms(3, 8)
    for row in range(3):
        monkeypatch.setattr(
            "vq_components.prior._generate.draw_uniform", lambda *shape, row=row, **_: numbers[row : row + 1]
        )
        alone = generate(prior, max_new_tokens=8, conditions=(labels[row : row + 1],), **rules)
        assert torch.equal(alone, together[row : row + 1])


def test_a_longer_sample_of_one_image_begins_like_a_shorter_one(build_prior):
    """For a batch of one: the numbers are drawn at the beginning, one per position."""
    prior, label = build_prior(), torch.tensor([1])
    short, long = (generate(prior, max_new_tokens=new, conditions=(label,), generator=source()) for new in (4, 9))
    assert torch.equal(long[:, :4], short)


def test_frequencies_are_the_models_probabilities(build_gpt):
    """Of pairs of tokens, joint: 20,000 draws, and five standard deviations of a frequency."""
    gpt, draws = build_gpt(vocab_size=5), 20_000
    with torch.no_grad():
        first = gpt(torch.tensor([[3]]))[0, -1].softmax(dim=0)
        second = torch.stack([gpt(torch.tensor([[3, token]]))[0, -1].softmax(dim=0) for token in range(5)])
    probability = (first[:, None] * second).flatten()
    pairs = generate(gpt, torch.full((draws, 1), 3), max_new_tokens=2)[:, 1:]
    frequency = torch.bincount(pairs[:, 0] * 5 + pairs[:, 1], minlength=25) / draws
    deviation = (probability * (1 - probability) / draws).sqrt()
    assert ((frequency - probability).abs() <= 5 * deviation + 1e-4).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guided", [False, True])
def test_other_precisions_sample_too(build_prior, dtype, guided):
    prior = build_prior(condition_dropout=0.1).to(dtype)
    sampled = generate(prior, max_new_tokens=6, conditions=(torch.tensor([0, 1]),), guidance=2.0 if guided else 1.0)
    assert sampled.shape == (2, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert generate(prior, max_new_tokens=6, conditions=(torch.tensor([0, 1]),)).shape == (2, 6)
