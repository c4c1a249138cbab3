"""A tokenizer under test, and its checks."""

import copy
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._compare import clone, differ, gap, state_difference, state_of
from ._engine import Kind
from ._report import fail, require


@dataclass(frozen=True, kw_only=True)
class TokenizerTraits:
    """What is true of an image tokenizer by design.

    Args:
        image_shape: channels, height and width of images that it takes.
        factor: pixels along each side of one token.
        codebook_size: number of tokens.
        low: smallest value of its images.
        high: largest value of its images.
        bounded: whether its decoder promises images in that range.
        index_shape: what one position's tokens add to the grid's shape.
        any_size: whether it takes any size that ``factor`` divides.
        half: whether it runs under autocast.
        strict: in evaluation, decoding the encoded images is bit-equal to the forward.
        rtol: relative tolerance, where not strict.
        atol: absolute tolerance, likewise.
    """

    image_shape: tuple[int, int, int] = (3, 32, 32)
    factor: int
    codebook_size: int
    low: float = -1.0
    high: float = 1.0
    bounded: bool = False
    index_shape: tuple[int, ...] = ()
    any_size: bool = True
    half: bool = True
    strict: bool = False
    rtol: float = 1e-3
    atol: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class TokenizerAdapter:
    """Functions that say how a tokenizer is used.

    Args:
        forward: ``(module, images) -> (reconstructions, indices, loss)``.
        encode: ``(module, images) -> indices``.
        decode: ``(module, indices) -> images``.
    """

    forward: Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]]
    encode: Callable[[Any, Tensor], Tensor] = lambda module, images: module.encode(images)
    decode: Callable[[Any, Tensor], Tensor] = lambda module, indices: module.decode(indices)


def _forward(module: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    reconstructions, indices, loss, *_ = module(images)
    return reconstructions, indices, loss


class TokenizerSubject:
    """A tokenizer, how to use it, and what it declares.

    Args:
        model: the module, which is copied for every check.
        traits: what it declares.
        name: what reports and test ids call it; its class's name unless told.
        adapter: how to use it; needed unless it returns ``(reconstructions, indices, loss, ...)`` and has ``encode``
            and ``decode``.
        expected_failures: names of checks that must fail, each with the reason.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        traits: TokenizerTraits,
        name: str | None = None,
        adapter: TokenizerAdapter | None = None,
        expected_failures: Mapping[str, str] | None = None,
    ) -> None:
        self._source = model
        self.traits = traits
        self.name = name or type(model).__name__
        self.adapter = TokenizerAdapter(forward=_forward) if adapter is None else adapter
        self.expected_failures = dict(expected_failures or {})

    def images(self, batch: int = 2, size: tuple[int, int] | None = None) -> Tensor:
        """Random smooth-ish images in the declared range."""
        channels, height, width = self.traits.image_shape
        height, width = size or (height, width)
        unit = torch.rand(batch, channels, height, width)
        return self.traits.low + (self.traits.high - self.traits.low) * unit

    def fresh(self) -> Any:
        """A copy in training mode."""
        return clone(self._source).train()

    def started(self, *, training: bool = False) -> Any:
        """A copy that has seen three training batches."""
        module = self.fresh()
        with torch.no_grad():
            for _ in range(3):
                self.adapter.forward(module, self.images(4))
        if hasattr(module, "update_"):
            module.update_()
        return module.train(training)

    def differ(self, actual: Tensor, expected: Tensor) -> str:
        """How far two values are apart, bit by bit if strict."""
        if self.traits.strict or not actual.is_floating_point():
            return gap(actual, expected)
        return self.about(actual, expected)

    def about(self, actual: Tensor, expected: Tensor) -> str:
        """How far two values are apart, within the tolerance."""
        return differ(actual, expected, rtol=self.traits.rtol, atol=self.traits.atol)


def as_tokenizer(model: Any, **options: Any) -> TokenizerSubject:
    """A subject as it is, or one made of a model."""
    return model if isinstance(model, TokenizerSubject) else TokenizerSubject(model, **options)


TOKENIZER: Kind[TokenizerSubject] = Kind("model", as_tokenizer)


@TOKENIZER.check(
    rule="images become a grid of tokens in [0, codebook_size), one for factor x factor pixels, and tokens become "
    "images of the first size",
    cause="tokens left flat, or height and width exchanged",
)
def check_token_grid(model: TokenizerSubject) -> None:
    """Guards shapes and the range of tokens, for images that are not square too.

    Fails it::

        return indices.view(batch, width, height)
    """
    traits = model.traits
    _, height, width = traits.image_shape
    sizes = [(height, width)]
    if traits.any_size:
        sizes += [(height, width + traits.factor), (height - traits.factor, width), (2 * height, width)]
    for training in (False, True):
        module = model.started(training=training)
        for size in sizes:
            images = model.images(2, size)
            reconstructions, indices, loss = model.adapter.forward(module, images)
            grid = (2, size[0] // traits.factor, size[1] // traits.factor, *traits.index_shape)
            require(reconstructions.shape == images.shape, f"reconstructions {tuple(reconstructions.shape)} of {size}")
            require(tuple(indices.shape) == grid, f"indices {tuple(indices.shape)} of images {size}")
            require(not indices.is_floating_point(), f"indices are {indices.dtype}")
            low, high = int(indices.min()), int(indices.max())
            require(0 <= low and high < traits.codebook_size, f"indices from {low} to {high}")
            require(loss.numel() == 1 and bool(loss.isfinite().all()), f"the loss is {loss.tolist()}")
            require(tuple(model.adapter.encode(module, images).shape) == grid, "encode gives another shape than forward")
            decoded = model.adapter.decode(module, indices)
            require(decoded.shape == images.shape, f"decoded images {tuple(decoded.shape)}")


@TOKENIZER.check(
    rule="in evaluation, decode(encode(images)) is what forward returns, and tokens are the same",
    cause="a step that only forward or only encode does, such as quant_conv",
)
def check_round_trip(model: TokenizerSubject) -> None:
    """Guards tokens that are stored and decoded later.

    Fails it::

        def decode(self, indices):
            return self.decoder(self.quantize.decode(indices))  # without post_quant_conv
    """
    module, images = model.started(), model.images(3)
    with torch.no_grad():
        reconstructions, indices, _ = model.adapter.forward(module, images)
        encoded = model.adapter.encode(module, images)
        decoded = model.adapter.decode(module, encoded)
    require(not gap(encoded, indices), f"encode and forward: {gap(encoded, indices)}")
    require(not model.differ(decoded, reconstructions), f"decoded images: {model.differ(decoded, reconstructions)}")
    require(bool(reconstructions.std() > 0), "all pixels of the reconstructions are equal")
    other = model.adapter.decode(module, (encoded + 1) % model.traits.codebook_size).detach()
    require(bool(gap(other, decoded)), "other tokens give the same images")


@TOKENIZER.check(
    rule="decoded images are in the declared range",
    cause="a decoder without a bound, or images in [0, 1] where [-1, 1] is declared",
    applies=lambda subject: subject.traits.bounded,
)
def check_image_range(model: TokenizerSubject) -> None:
    """Guards the range of images, for models whose decoder promises one.

    Fails it::

        return self.conv_out(h)  # without tanh
    """
    module = model.started()
    images = model.adapter.forward(module, model.images(3))[0].detach()
    low, high = float(images.min()), float(images.max())
    require(model.traits.low <= low and high <= model.traits.high, f"values from {low:.3g} to {high:.3g}")


@TOKENIZER.check(
    rule="in evaluation, an image's tokens and reconstruction do not depend on the rest of the batch",
    cause="batch normalization in training mode, or statistics of the batch",
)
def check_image_independence(model: TokenizerSubject) -> None:
    """Guards batched tokenizing of a data set.

    Fails it::

        h = h - h.mean(dim=0)
    """
    module, images = model.started(), model.images(4)
    with torch.no_grad():
        together = model.adapter.forward(module, images)
        for row in range(4):
            alone = model.adapter.forward(module, images[row : row + 1])
            text = gap(alone[1], together[1][row : row + 1])
            require(not text, f"image {row}: {text} in the indices")
            text = model.about(alone[0], together[0][row : row + 1])
            require(not text, f"image {row}: {text} in the reconstruction")


@TOKENIZER.check(
    rule="encode needs no gradient, changes nothing and leaves the mode, in training mode too",
    cause="encode that calls forward, which counts",
)
def check_encode_is_pure(model: TokenizerSubject) -> None:
    """Guards looking at tokens in the middle of a training.

    Fails it::

        def encode(self, images):
            return self(images).indices
    """
    for training in (True, False):
        module = model.started(training=training)
        before = state_of(module)
        images = model.images(2)
        kept = images.clone()
        indices = model.adapter.encode(module, images)
        require(not indices.requires_grad, "indices require grad")
        require(not state_difference(state_of(module), before), state_difference(state_of(module), before))
        require(module.training == training, "the mode changed")
        require(not gap(images, kept), "the images were changed")
    module = model.started()
    before = state_of(module)
    model.adapter.forward(module, model.images(2))
    text = state_difference(state_of(module), before)
    require(not text, f"an evaluation changed the state: {text}")


@TOKENIZER.check(
    rule="under autocast it runs, and most tokens are those of float32",
    cause="a dtype that is not converted where parts meet",
    applies=lambda subject: subject.traits.half,
)
def check_tokenizer_autocast(model: TokenizerSubject) -> None:
    """Guards mixed precision: the networks round, so a share of the tokens may differ.

    Fails it::

        quantized = self.codebook[indices]  # float32, into a half-precision convolution
    """
    module, images = model.started(), model.images(4)
    with torch.no_grad():
        expected = model.adapter.encode(module, images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            indices = model.adapter.encode(module, images)
            decoded = model.adapter.decode(module, indices)
    share = float((indices == expected).double().mean())
    require(share > 0.5, f"{100 * share:.0f} % of the tokens are those of float32")
    require(bool(decoded.isfinite().all()), "decoded images are not finite")


@TOKENIZER.check(
    rule="every parameter gets a finite gradient from reconstruction and loss",
    cause="no straight-through estimator, a layer that is never called, or a detach too many",
)
def check_tokenizer_gradients(model: TokenizerSubject) -> None:
    """Guards encoder, quantizer and decoder.

    Fails it::

        z = self.encoder(images).detach()
    """
    module = model.started(training=True)
    images = model.images(4)
    reconstructions, _, loss = model.adapter.forward(module, images)
    ((reconstructions - images).square().mean() + loss.reshape(())).backward()
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    idle = [name for name, p in named if p.grad is None or not bool(p.grad.any())]
    require(not idle, f"no gradient at {', '.join(idle[:6])}")
    bad = [name for name, p in named if p.grad is not None and not bool(p.grad.isfinite().all())]
    require(not bad, f"a gradient that is not finite at {', '.join(bad[:6])}")


@TOKENIZER.check(
    rule="a state_dict loads strictly into a fresh model, and a deep copy goes on as the original",
    cause="state that is no parameter and no buffer",
)
def check_save_and_load(model: TokenizerSubject) -> None:
    """Guards files and copies: the same tokens and reconstructions.

    Fails it::

        self.register_buffer("codebook", codebook, persistent=False)
    """
    module, images, buffer = model.started(), model.images(2), io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    other = model.fresh().eval()
    other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    with torch.no_grad():
        expected = model.adapter.forward(module, images)
        for name, each in (("loaded", other), ("deepcopy", copy.deepcopy(module))):
            result = model.adapter.forward(each, images)
            text = gap(result[1], expected[1]) or model.differ(result[0], expected[0])
            require(not text, f"{name}: {text}")


@TOKENIZER.check(
    rule="training on a few images brings their error down",
    cause="a gradient that does not reach the encoder, or a codebook that is never moved",
)
def check_tokenizer_training(model: TokenizerSubject) -> None:
    """Guards the whole, in 60 steps on a batch of smooth images.

    Fails it::

        loss = commitment  # and the codebook stays where it was
    """
    module = model.fresh()
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=2e-3)
    channels, height, width = model.traits.image_shape
    coarse = torch.rand(4, channels, 2, 2)
    unit = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    images = model.traits.low + (model.traits.high - model.traits.low) * unit
    errors = []
    for _ in range(60):
        reconstructions, _, loss = model.adapter.forward(module, images)
        error = (reconstructions - images).square().mean()
        optimizer.zero_grad()
        (error + loss.reshape(())).backward()
        optimizer.step()
        if hasattr(module, "update_"):
            module.update_()
        errors.append(float(error.detach()))
    last = sum(errors[-5:]) / 5
    if not last < 0.5 * errors[0]:
        fail(f"the squared error goes from {errors[0]:.4g} to {last:.4g} in {len(errors)} steps")
