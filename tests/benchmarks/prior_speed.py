"""Speed of the prior next to the original GPT and to Hugging Face's GPT-2, as ratios from alternating runs.

    python tests/benchmarks/prior_speed.py [NAME ...]

Names are train-256, train-1024, sample-1, sample-8, windows, windows-conditional and bandwidth; all unless told.

Peers are not installed with the package: ``pip install --no-deps -r tests/benchmarks/requirements-peers.txt``, and what
they import. A peer that cannot be imported is left out. Weights are random: only time is compared.
"""

import torch
from measuring import medians, run_named
from original import import_original
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

import vq_components as vq

original = import_original("transformer.mingpt")

SMALL = {"n_layer": 8, "n_head": 8, "n_embd": 256}
LARGE = {"n_layer": 12, "n_head": 12, "n_embd": 768}
VOCAB = 1024


def report(title, seconds, goals):
    """One row for each peer: how much longer it takes."""
    ours = seconds.pop("ours")
    for name, value in seconds.items():
        print(
            f"| {title} | {ours:.3f} s | {name} | {value:.3f} s | {value / ours:.2f} x | {goals[name]} x |", flush=True
        )


def models(block_size, sizes, vocab_size=VOCAB, n_unmasked=0):
    """Our GPT and the original's with the same weights."""
    ours = vq.MinGPT(vocab_size, block_size, n_unmasked=n_unmasked, **sizes)
    theirs = original.GPT(vocab_size, block_size, n_unmasked=n_unmasked, **sizes)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    return ours, theirs


def train(length, goal, rounds):
    """Forward, loss, backward and optimizer step."""
    tokens = torch.randint(VOCAB, (4, length + 1))

    def step(model, optimizer, forward):
        def run():
            logits = forward(model, tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return run

    ours, theirs = models(length, SMALL)
    functions = {
        "ours": step(ours, torch.optim.AdamW(ours.parameters(), 1e-4), lambda model, x: model(x)),
        "original": step(theirs, torch.optim.AdamW(theirs.parameters(), 1e-4), lambda model, x: model(x)[0]),
    }
    report(f"training step, T={length}", medians(functions, rounds), {"original": goal})


def sample(batch, goals, rounds):
    """256 tokens, cached, top-k 100."""
    ours, theirs = models(512, LARGE)
    config = GPT2Config(vocab_size=VOCAB, n_positions=512, bos_token_id=0, eos_token_id=None)
    gpt2 = GPT2LMHeadModel(config).eval()
    prompt = torch.randint(VOCAB, (batch, 1))
    uncached = (
        {}
        if "original, uncached" not in goals
        else {"original, uncached": lambda: original.sample(theirs, prompt, 256, sample=True, top_k=100)}
    )
    functions = {
        "ours": lambda: vq.generate(ours, prompt, max_new_tokens=256, top_k=100),
        "GPT-2": lambda: gpt2.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=256,
            do_sample=True,
            top_k=100,
            pad_token_id=0,
        ),
        "original": lambda: original.sample_with_past(prompt, theirs.eval(), 256),
    }
    report(f"sampling 256 tokens, batch {batch}", medians(functions | uncached, rounds), goals)


def windows(conditional, goal, rounds):
    """A grid of 32 x 32 tokens in windows of 16 x 16."""
    side, size = 32, 16
    conditions = (vq.SpatialTokens(VOCAB),) if conditional else (vq.StartToken(),)
    first = size**2 if conditional else 1
    ours, theirs = models(2 * size**2, SMALL, n_unmasked=first)
    prior = vq.ConditionalPrior(ours, image_vocab=VOCAB, conditions=conditions, offset=False)
    given = torch.randint(VOCAB, (1, side, side))

    @torch.no_grad()
    def loop():  # all tokens of the window, for one of its positions
        tokens = torch.zeros(1, side, side, dtype=torch.long)
        for row in range(side):
            for column in range(side):
                top, left = (min(max(i - size // 2, 0), side - size) for i in (row, column))
                window = (slice(None), slice(top, top + size), slice(left, left + size))
                prefix = given[window].flatten(1) if conditional else torch.zeros(1, 1, dtype=torch.long)
                sequence = torch.cat([prefix, tokens[window].flatten(1)], dim=1)
                logits = theirs(sequence[:, :-1])[0][:, -(size**2) :]
                logits = logits[:, (row - top) * size + column - left]
                tokens[:, row, column] = torch.multinomial(logits.softmax(dim=-1), 1)[:, 0]

    functions = {
        "ours": lambda: vq.generate_windows(
            prior, grid=(side, side), window=(size, size), conditions=(given,) if conditional else ()
        ),
        "original": loop,
    }
    title = f"32 x 32 tokens in 16 x 16 windows, {'conditional' if conditional else 'unconditional'}"
    report(title, medians(functions, rounds), {"original": goal})


def bandwidth(rounds):
    """Bytes of weights that a batch-1 step reads per second, as a share of what a sum over memory reads."""
    gpt, _ = models(512, LARGE)
    memory = torch.ones(100_000_000)
    read = sum(p.numel() for p in gpt.parameters()) - gpt.pos_emb.numel() - gpt.tok_emb.weight.numel()
    prompt = torch.randint(VOCAB, (1, 1))
    functions = {
        "memory": memory.sum,
        "step": lambda: vq.generate(gpt, prompt, max_new_tokens=64),
    }
    seconds = medians(functions, rounds)
    available, reached = 4 * memory.numel() / seconds["memory"], 4 * read * 64 / seconds["step"]
    rates = f"{reached / 1e9:.1f} GB/s | memory | {available / 1e9:.1f} GB/s"
    print(f"| weights read at batch 1 | {rates} | {reached / available:.0%} | 75 % |")


BENCHMARKS = {
    "train-256": lambda rounds: train(256, 1.3, rounds),
    "train-1024": lambda rounds: train(1024, 2.3, rounds),
    "sample-1": lambda rounds: sample(1, {"GPT-2": 1.25, "original": 1.3, "original, uncached": 6}, rounds),
    "sample-8": lambda rounds: sample(8, {"GPT-2": 1.25, "original": 1.8}, rounds),
    "windows": lambda rounds: windows(False, 3, rounds),
    "windows-conditional": lambda rounds: windows(True, 2, rounds),
    "bandwidth": bandwidth,
}

if __name__ == "__main__":
    run_named(__doc__, BENCHMARKS, rounds=5, columns="what | ours | peer | peer's | ratio | goal")
