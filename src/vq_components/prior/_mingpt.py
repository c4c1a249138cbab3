"""A transformer over tokens, under the parameter names of the original VQ-GAN."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ._blocks import Block, plan_attention
from ._cache import KeyValueCache

_INIT_STD = 0.02


class MinGPT(nn.Module):
    """Autoregressive transformer over tokens: the logits of each next one, ``p(s) = prod_t p(s_t | s_<t)``.

    Token and position embeddings; ``n_layer`` blocks of attention and perceptron with pre-normalization; a last
    normalization and a linear head without bias. Logits at position ``t`` are those of the token after it; the loss is
    ``F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())``, in nats per token.

    Weights start from N(0, 0.02), those of the two layers that write to the residual stream from
    ``N(0, 0.02 / sqrt(2 * n_layer))``, so that its variance does not grow with depth (Radford et al. 2019).

    Args:
        vocab_size: number of tokens that can come in and out.
        block_size: longest sequence, prepended embeddings included.
        n_layer: number of blocks.
        n_head: number of attention heads, a divisor of ``n_embd``.
        n_embd: width ``C``.
        embd_pdrop: share of the embeddings that is dropped in training.
        resid_pdrop: share of what each layer adds that is dropped in training.
        attn_pdrop: share of the attention's weights that is dropped in training.
        n_unmasked: the first ``n`` positions see each other in both directions, such as a condition's tokens; all later
            ones see what is before them.

    Raises:
        ValueError: from the constructor, if a number is out of range; from a call, if shapes do not fit, the sequence
            is longer than ``block_size``, or (on a CPU) a token is outside ``[0, vocab_size)``.
        TypeError: from a call, if tokens are not integers.

    Note:
        Parameter names are those of the original. Its files also hold a buffer ``attn.mask`` in each block; these are
        not needed, and ignored when loading, except that they must tell of the same ``n_unmasked``.

    References:
        Esser, Rombach, Ommer (2021), "Taming Transformers for High-Resolution Image Synthesis", eq. 8 of arXiv v3;
        Radford et al. (2019), "Language Models are Unsupervised Multitask Learners", for the architecture.

    Example:
        >>> gpt = MinGPT(vocab_size=1024, block_size=256, n_layer=2, n_head=4, n_embd=64)
        >>> tokens = torch.randint(1024, (2, 100))
        >>> logits = gpt(tokens)
        >>> logits.shape
        torch.Size([2, 100, 1024])
        >>> loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        >>> optimizer = torch.optim.AdamW(gpt.parameter_groups(weight_decay=0.1), lr=3e-4)
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        *,
        n_layer: int = 12,
        n_head: int = 8,
        n_embd: int = 256,
        embd_pdrop: float = 0.0,
        resid_pdrop: float = 0.0,
        attn_pdrop: float = 0.0,
        n_unmasked: int = 0,
    ) -> None:
        super().__init__()
        _check_positive(vocab_size=vocab_size, block_size=block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
        _check_ranges(block_size, n_unmasked, embd_pdrop, resid_pdrop, attn_pdrop)
        if n_embd % n_head != 0:
            raise ValueError(
                f"MinGPT splits n_embd into n_head equal heads, but got n_embd={n_embd} and n_head={n_head}. "
                f"Change one of them."
            )
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.n_unmasked = n_unmasked
        self.tok_emb = nn.Embedding(vocab_size, n_embd)
        self.pos_emb = nn.Parameter(torch.zeros(1, block_size, n_embd))
        self.drop = nn.Dropout(embd_pdrop)
        self.blocks = nn.ModuleList(
            Block(n_embd, n_head, attn_pdrop=attn_pdrop, resid_pdrop=resid_pdrop) for _ in range(n_layer)
        )
        self.ln_f = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        self._initialize_()

    def forward(self, tokens: Tensor, *, embeddings: Tensor | None = None) -> Tensor:
        """Logits of the next token at every position.

        Args:
            tokens: integers ``(B, T)`` in ``[0, vocab_size)``.
            embeddings: ``(B, E, n_embd)``, put before the tokens' own, such as those of a continuous condition.

        Returns:
            ``(B, T, vocab_size)``, or ``(B, E + T, vocab_size)``; those at the last position are of the token that
            would come next.
        """
        logits: Tensor = self.head(self.features(tokens, embeddings=embeddings))
        return logits

    def features(
        self, tokens: Tensor, *, embeddings: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """What the head turns into logits, ``(B, E + T, n_embd)``.

        Args:
            tokens: as in :meth:`forward`.
            embeddings: as in :meth:`forward`.
            cache: one that :meth:`new_cache` made. The positions of this call then follow those that it holds, see
                them, and are added to it.

        Raises:
            ValueError: also if the cache is full, or if it holds fewer positions than ``n_unmasked``, which would still
                change.
        """
        past = 0 if cache is None else cache.length
        self._check_input(tokens, embeddings, past, self.block_size if cache is None else cache.capacity)
        x = self.tok_emb(tokens)
        if embeddings is not None:
            x = torch.cat([embeddings.to(x.dtype), x], dim=1)
        new = x.shape[1]
        x = self.drop(x + self.pos_emb[:, past : past + new])
        attend = plan_attention(new, past=past, n_unmasked=self.n_unmasked, device=x.device)
        for index, block in enumerate(self.blocks):
            x = block(x, attend, cache=cache, index=index)
        if cache is not None:
            cache.advance(new)
        result: Tensor = self.ln_f(x)
        return result

    def new_cache(self, batch_size: int, length: int | None = None) -> KeyValueCache:
        """An empty cache for :meth:`features`, of ``length`` positions at most; ``block_size`` unless told."""
        length = self.block_size if length is None else length
        heads: int = self.blocks[0].attn.n_head  # type: ignore[union-attr, assignment]
        width = self.pos_emb.shape[2] // heads
        return KeyValueCache.empty(len(self.blocks), batch_size, heads, length, width, like=self.tok_emb.weight)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """All parameters in two groups for an optimizer: matrices of linear layers decay, the rest does not.

        Biases, normalizations and the two embeddings do not decay.

        Args:
            weight_decay: of the first group.

        Returns:
            What ``torch.optim.AdamW`` takes in place of ``parameters()``.
        """
        decayed = {id(module.weight) for module in self.modules() if isinstance(module, nn.Linear)}
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for parameter in self.parameters():
            groups[id(parameter) not in decayed].append(parameter)
        return [
            {"params": params, "weight_decay": decay} for params, decay in zip(groups, (weight_decay, 0.0), strict=True)
        ]

    @torch.no_grad()
    def start_embedding_(self, codebook: Tensor, *, first_token: int = 0) -> None:
        """Starts the embeddings of ``K`` tokens from a tokenizer's codebook: similar entries, similar embeddings.

        The entries, less their mean, are projected to ``n_embd`` dimensions by a random matrix with orthonormal rows or
        columns (distances are kept where ``n_embd >= D``), and scaled to the standard deviation of the usual start.

        Args:
            codebook: the entries ``(K, D)``, such as ``model.quantize.codebook``.
            first_token: token that stands for the first entry.

        Raises:
            ValueError: if the codebook is not ``(K, D)`` with ``K`` tokens from ``first_token`` on in the vocabulary.
        """
        if codebook.ndim != 2 or not 0 <= first_token <= self.vocab_size - len(codebook):
            raise ValueError(
                f"start_embedding_ takes a codebook (K, D) for tokens from first_token={first_token} on in a "
                f"vocabulary of {self.vocab_size}, but got shape {tuple(codebook.shape)}. "
                f"Enlarge vocab_size, or lower first_token."
            )
        weight = self.tok_emb.weight
        entries = codebook.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
        projection = nn.init.orthogonal_(entries.new_empty(codebook.shape[1], weight.shape[1]))
        start = (entries - entries.mean(dim=0)) @ projection
        scale = _INIT_STD / start.square().mean().sqrt().clamp(min=torch.finfo(start.dtype).tiny)
        weight[first_token : first_token + len(codebook)] = start * scale

    def _initialize_(self) -> None:
        residual = {id(layer) for block in self.blocks for layer in (block.attn.proj, block.mlp[2])}  # type: ignore[union-attr, index]
        nn.init.normal_(self.pos_emb, std=_INIT_STD)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                depth = 2 * len(self.blocks) if id(module) in residual else 1
                nn.init.normal_(module.weight, std=_INIT_STD / math.sqrt(depth))
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def _check_input(self, tokens: Tensor, embeddings: Tensor | None, past: int, longest: int) -> None:
        if tokens.ndim != 2:
            raise ValueError(
                f"MinGPT takes tokens of shape (B, T), but got {tuple(tokens.shape)}. "
                f"Flatten a grid of tokens, or give it an order with TokenOrder."
            )
        width = self.pos_emb.shape[2]
        if embeddings is not None and (
            embeddings.ndim != 3 or (len(embeddings), embeddings.shape[2]) != (len(tokens), width)
        ):
            raise ValueError(
                f"MinGPT takes embeddings of shape ({len(tokens)}, E, {width}), "
                f"but got {tuple(embeddings.shape)}. Project them to n_embd."
            )
        length = past + tokens.shape[1] + (0 if embeddings is None else embeddings.shape[1])
        if length > min(longest, self.block_size):
            raise ValueError(
                f"MinGPT has positions for {min(longest, self.block_size)} tokens, embeddings included, but got "
                f"{length}. Shorten the sequence, or build it with a larger block_size."
            )
        if 0 < past < self.n_unmasked:
            raise ValueError(
                f"The first n_unmasked={self.n_unmasked} positions see each other and must come in one call, but the "
                f"cache holds {past}. Clear it and pass them together."
            )
        check_tokens(tokens, self.vocab_size, name="MinGPT")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Loads; the masks in files of the original are only looked at."""
        errors: list[str] = args[-1]
        for key in list(_mask_keys(state_dict, prefix)):
            # Ones in its first row are what the first position sees.
            seen = int(state_dict.pop(key)[0, 0, 0].count_nonzero())
            if seen != max(self.n_unmasked, 1):
                errors.append(f"{key} is of a model with n_unmasked={seen}, but this one has {self.n_unmasked}.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _mask_keys(state_dict: dict[str, Any], prefix: str) -> Iterator[str]:
    return (key for key in state_dict if key.startswith(prefix + "blocks.") and key.endswith(".attn.mask"))


_TOKENS_ADVICE = "Positions that a mask left out (-1) have no token; a larger codebook needs a larger vocabulary."


def check_tokens(
    tokens: Tensor, vocab_size: int, *, name: str, noun: str = "tokens", advice: str = _TOKENS_ADVICE
) -> None:
    """Raises unless ``tokens`` are integers and, where that can be seen without a wait, in ``[0, vocab_size)``."""
    if tokens.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} takes int64 or int32 {noun}, but got {tokens.dtype}. Convert them with .long().")
    if torch.compiler.is_compiling() or tokens.device.type != "cpu" or tokens.numel() == 0:
        return
    low, high = (int(bound) for bound in tokens.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"{name} takes {noun} in [0, {vocab_size}), but got values from {low} to {high}. {advice}")


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"MinGPT needs a positive {name}, but got {size}.")


def _check_ranges(block_size: int, n_unmasked: int, *dropouts: float) -> None:
    if not 0 <= n_unmasked <= block_size:
        raise ValueError(f"n_unmasked must be in [0, block_size={block_size}], but got {n_unmasked}.")
    if not all(0 <= share <= 1 for share in dropouts):
        raise ValueError(f"MinGPT drops shares in [0, 1], but got embd_pdrop, resid_pdrop, attn_pdrop={dropouts}.")
