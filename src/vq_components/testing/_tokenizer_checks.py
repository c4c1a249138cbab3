"""Checks of an image tokenizer."""

import copy
import io
from functools import partial

import torch

from ._compare import clone, counted_by_norms, gap, state_difference, state_of, state_without
from ._engine import BASIC
from ._report import refused, require
from ._tokenizer import TOKENIZER, TokenizerSubject


@TOKENIZER.check(
    rule="images become a grid of tokens in [0, codebook_size), one for factor x factor pixels, and tokens become "
    "images of the first size",
    cause="tokens left flat, or height and width exchanged; a model of one size only declares any_size=False",
    rank=BASIC,
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
        sizes += [(height, width + traits.factor), (2 * height, width)]
        sizes += [(height - traits.factor, width)] if height > traits.factor else []
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
            require(low >= 0 and high < traits.codebook_size, f"indices from {low} to {high}")
            require(loss.numel() == 1 and bool(loss.isfinite().all()), f"the loss is {loss.tolist()}")
            require(
                tuple(model.adapter.encode(module, images).shape) == grid, "encode gives another shape than forward"
            )
            decoded = model.adapter.decode(module, indices)
            require(decoded.shape == images.shape, f"decoded images {tuple(decoded.shape)}")


@TOKENIZER.check(
    rule="the model's update_() is its quantizer's: it applies what training forwards have counted",
    cause="a method that the model has, but does not hand on",
    applies=lambda subject: hasattr(subject.fresh(), "update_") and hasattr(subject.fresh(), "quantize"),
)
def check_tokenizer_update(model: TokenizerSubject) -> None:
    """Guards a codebook inside of a model, as the model's owner calls it.

    Fails it::

        def update_(self):
            pass
    """
    module = model.started(training=True)
    model.adapter.forward(module, model.images(2))
    expected = clone(module)
    module.update_()
    expected.quantize.update_()
    text = state_difference(state_of(module), state_of(expected))
    require(not text, f"compared with quantize.update_(): {text}")


@TOKENIZER.check(
    rule="in evaluation, decode(encode(images)) is what forward returns, and tokens are the same",
    cause="a step that only forward or only encode does, such as quant_conv",
    rank=BASIC,
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
    needs="bounded=True, if decoded images keep to a range",
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
    cause="encode that calls forward, which counts; batch normalization may count",
)
def check_encode_is_pure(model: TokenizerSubject) -> None:
    """Guards looking at tokens in the middle of a training.

    Fails it::

        def encode(self, images):
            return self(images).indices
    """
    for training in (True, False):
        module = model.started(training=training)
        counted = counted_by_norms(module)  # wherever they are called, in training mode
        before = state_without(module, counted)
        images = model.images(2)
        kept = images.clone()
        indices = model.adapter.encode(module, images)
        require(not indices.requires_grad, "indices require grad")
        text = state_difference(state_without(module, counted), before)
        require(not text, text)
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
    if model.traits.strict:
        entries = dict(module.state_dict())
        first = entries.pop(next(iter(entries)))
        for name, wrong in (("an entry missing", entries), ("another entry", {**module.state_dict(), "x.y": first})):
            require(refused(partial(other.load_state_dict, wrong), RuntimeError), f"a file with {name} is loaded")
