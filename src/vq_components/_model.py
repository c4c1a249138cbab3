"""The image tokenizer: encoder, quantizer and decoder as one module."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .networks._blocks import check_images
from .quantizers import AbstractQuantizer
from .quantizers._schedule import UpdateHandle


class VQModelOutput(NamedTuple):
    """What :class:`VQModel` returns, the same in training and in evaluation."""

    reconstructions: Tensor
    """The decoder's images, in the shape of those that came in."""
    indices: Tensor
    """Which entries stand for the images, ``int64`` ``(B, h, w)``, or ``(B, h, w, Q)`` for ``Q`` quantizers."""
    loss: Tensor
    """The quantizer's weighted scalar: add it to the reconstruction's loss as it is."""
    terms: dict[str, Tensor]
    """The quantizer's detached, unweighted scalars for the log."""


class VQModel(nn.Module):
    """Image tokenizer: encoder, 1x1 convolution, quantizer, 1x1 convolution, decoder.

    ``reconstructions = decoder(post_quant_conv(quantize(quant_conv(encoder(images)))))``. The two convolutions
    translate between the channels of the networks and those of the quantizer. Submodules have the names of the
    original (``encoder``, ``quant_conv``, ``quantize``, ``post_quant_conv``, ``decoder``), so that its checkpoints load
    once their ``loss.*`` entries are taken out.

    Args:
        encoder: images ``(B, C, H, W)`` to ``(B, z_channels, h, w)``, such as :class:`Encoder`.
        quantizer: any quantizer with the channels along dimension 1.
        decoder: ``(B, z_channels, h, w)`` to images, such as :class:`Decoder`.
        z_channels: number of channels of the networks, if they do not tell it by an attribute ``z_channels``.

    Raises:
        ValueError: from the constructor, if the number of channels is not known or contradicts a network's own, or if
            the quantizer has its channels elsewhere; from a call, if images are not ``(B, C, H, W)`` or a mask does not
            have the latents' shape ``(B, h, w)``.
        TypeError: from the constructor, if ``quantizer`` is none; from a call, if images are no floating point tensor
            or a mask is not bool.

    References:
        Esser, Rombach, Ommer (2021), "Taming Transformers for High-Resolution Image Synthesis". Their E is ``encoder``
        with ``quant_conv``, their G ``post_quant_conv`` with ``decoder``, their q and Z ``quantize`` and its codebook.

    Example:
        >>> from vq_components import Decoder, Encoder, VectorQuantizer, VQModel
        >>> config = dict(ch=32, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[], resolution=32, z_channels=16)
        >>> model = VQModel(Encoder(in_channels=3, **config), VectorQuantizer(512, 8), Decoder(out_ch=3, **config))
        >>> images = torch.rand(2, 3, 32, 32) * 2 - 1
        >>> reconstructions, indices, loss, terms = model.eval()(images)
        >>> indices.shape
        torch.Size([2, 16, 16])
        >>> torch.equal(model.decode(model.encode(images)), reconstructions)
        True
    """

    def __init__(
        self, encoder: nn.Module, quantizer: AbstractQuantizer, decoder: nn.Module, *, z_channels: int | None = None
    ) -> None:
        super().__init__()
        if not isinstance(quantizer, AbstractQuantizer):
            came = f"the class {quantizer.__name__}" if isinstance(quantizer, type) else type(quantizer).__name__
            raise TypeError(
                f"VQModel takes a quantizer between encoder and decoder, but got {came}. "
                f"Pass one, built, as VQModel(encoder, quantizer, decoder); one of your own extends AbstractQuantizer."
            )
        if quantizer.channel_dim not in (1, -3):
            raise ValueError(
                f"VQModel gives its quantizer latents of shape (B, C, H, W), "
                f"but {type(quantizer).__name__} has channel_dim={quantizer.channel_dim}. Build it with channel_dim=1."
            )
        self.encoder = encoder
        self.quantize = quantizer
        self.decoder = decoder
        self.quant_conv = nn.Conv2d(_latent_channels(encoder, "encoder", z_channels), quantizer.dim, 1)
        self.post_quant_conv = nn.Conv2d(quantizer.dim_out, _latent_channels(decoder, "decoder", z_channels), 1)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> VQModelOutput:
        """Runs images ``(B, C, H, W)`` in ``[-1, 1]`` through all parts; in training, the quantizer counts them.

        ``mask``, bool ``(B, h, w)``, is the quantizer's: True where a position of the latents exists. Others, such as
        those of padding, have index -1, are zeros to the decoder, and enter neither loss nor statistics.
        """
        quantized, indices, loss, terms = self.quantize(self.features(images), mask)
        return VQModelOutput(self._to_images(quantized), indices, loss, terms)

    def features(self, images: Tensor) -> Tensor:
        """Continuous latents ``(B, quantizer.dim, h, w)`` of images ``(B, C, H, W)``: what the quantizer receives."""
        check_images(images, name="VQModel")
        latents: Tensor = self.quant_conv(self.encoder(images))
        return latents

    def encode(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Indices ``(B, h, w)`` or ``(B, h, w, Q)`` of images ``(B, C, H, W)``; the quantizer counts nothing.

        ``mask`` is that of :meth:`forward`.
        """
        with torch.no_grad():  # not around the quantizer, which does the same: torch.export cannot nest the two
            latents = self.features(images)
        return self.quantize.encode(latents, mask)

    def decode(self, indices: Tensor) -> Tensor:
        """Images of indices as :meth:`encode` gives them; in eval mode bit-equal to forward's ``reconstructions``."""
        # The codebook may be of another type than the networks: it can stay float32 in a half-precision model.
        return self._to_images(self.quantize.decode(indices).to(self.post_quant_conv.weight.dtype))

    @property
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, at which the adaptive weight of the adversarial loss is measured.

        Raises:
            TypeError: if the decoder has no attribute ``last_layer``.
        """
        # No AttributeError: Module would replace it by one that says that VQModel has no last_layer.
        if not hasattr(self.decoder, "last_layer"):
            raise TypeError(
                f"VQModel.last_layer is that of its decoder, but {type(self.decoder).__name__} has none. "
                f"Give it a property last_layer that returns the weight of its last layer."
            )
        return cast(nn.Parameter, self.decoder.last_layer)

    def update_(self) -> None:
        """Applies what the quantizer has counted, as :meth:`AbstractQuantizer.update_` does."""
        self.quantize.update_()

    def update_after(self, optimizer: Any) -> UpdateHandle:
        """Applies one update of the quantizer after every step of ``optimizer``, until ``handle.remove()``.

        Args:
            optimizer: what :meth:`AbstractQuantizer.update_after` takes.

        Returns:
            That method's handle.
        """
        return self.quantize.update_after(optimizer)

    def _to_images(self, quantized: Tensor) -> Tensor:
        # Convolutions round differently in another memory format, and forward has that of its images, decode has not.
        images: Tensor = self.decoder(self.post_quant_conv(quantized.contiguous()))
        return images


def _latent_channels(network: nn.Module, name: str, z_channels: int | None) -> int:
    """Channels of the latents that ``network`` gives or takes: its own attribute, else ``z_channels``."""
    channels: int | None = getattr(network, "z_channels", z_channels)
    if channels is None:
        raise ValueError(
            f"VQModel needs the number of latent channels of its {name}, but {type(network).__name__} has no attribute "
            f"z_channels. Pass z_channels= to VQModel, or give the {name} the attribute."
        )
    if z_channels not in (None, channels):
        raise ValueError(
            f"VQModel reads the number of latent channels from its {name}, whose z_channels is {channels}, "
            f"but got z_channels={z_channels}. Leave the argument out."
        )
    return channels
