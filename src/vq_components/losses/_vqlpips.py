"""The VQ-GAN objective under the original's name and constructor."""

from torch import Tensor, nn

from ..networks import NLayerDiscriminator
from ._perceptual import LPIPSLoss
from ._vqgan import VQGANLoss


class VQLPIPSWithDiscriminator(VQGANLoss):
    """:class:`VQGANLoss` with the constructor of the original code, for configurations that name it.

    It builds a :class:`NLayerDiscriminator`, and ``LPIPSLoss("vgg")`` unless ``perceptual_weight`` is 0. Existing
    training code calls the module itself, with ``optimizer_idx``; new code calls ``generator_loss`` and
    ``discriminator_loss``. Its ``state_dict()`` holds ``discriminator.*`` only.

    What differs from the original: ``pixelloss_weight`` has an effect; ``delta`` is the paper's 1e-6, where the code
    has 1e-4; the discriminator is not called before ``disc_start``; a generator pass does not touch it.

    Args:
        disc_start: first step in which the discriminator learns.
        codebook_weight: weight of the quantizer's loss.
        pixelloss_weight: weight of the mean absolute difference.
        disc_num_layers: ``n_layers`` of the discriminator.
        disc_in_channels: channels of the discriminator's input: of images and condition together, if conditional.
        disc_factor: weight of everything adversarial, in both passes.
        disc_weight: weight of the adversarial term, next to lambda.
        perceptual_weight: weight of the perceptual distance.
        use_actnorm: whether the discriminator has :class:`ActNorm` instead of batch normalization.
        disc_conditional: whether the discriminator receives ``cond`` as further channels.
        disc_ndf: ``ndf`` of the discriminator.
        disc_loss: ``"hinge"``, ``"vanilla"`` or ``"non_saturating"``.
        discriminator: takes the place of the one built here; the arguments about its layers are then not used.
        perceptual: takes the place of ``LPIPSLoss("vgg")``, for example ``LPIPSLoss("vgg", weights=path)``.
        gen_start: first step in which the generator follows the discriminator; ``disc_start`` unless told.
        gen_ramp: number of steps in which the adversarial term grows to its full weight.
        delta: that of :func:`~vq_components.functional.adaptive_weight`.

    Raises:
        ValueError: from the constructor, if an argument is out of range; from a call, also if ``cond`` is given and
            ``disc_conditional`` is not, or the other way round.
        OSError: from the constructor, if LPIPS finds no weights and cannot download them.

    References:
        Esser, Rombach, Ommer (2021), "Taming Transformers for High-Resolution Image Synthesis".

    Example:
        >>> import torch
        >>> from vq_components import VQLPIPSWithDiscriminator
        >>> objective = VQLPIPSWithDiscriminator(disc_start=100, perceptual_weight=0.0, disc_num_layers=1, disc_ndf=8)
        >>> decoder = torch.nn.Conv2d(4, 3, 3, padding=1)
        >>> images, reconstructions = torch.rand(2, 3, 16, 16) * 2 - 1, decoder(torch.randn(2, 4, 16, 16))
        >>> loss, log = objective(torch.tensor(0.0), images, reconstructions, 0, 0, last_layer=decoder.weight)
        >>> list(log)[:5]
        ['train/total_loss', 'train/quant_loss', 'train/nll_loss', 'train/rec_loss', 'train/p_loss']
    """

    def __init__(
        self,
        disc_start: int,
        codebook_weight: float = 1.0,
        pixelloss_weight: float = 1.0,
        disc_num_layers: int = 3,
        disc_in_channels: int = 3,
        disc_factor: float = 1.0,
        disc_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        use_actnorm: bool = False,
        disc_conditional: bool = False,
        disc_ndf: int = 64,
        disc_loss: str = "hinge",
        *,
        discriminator: nn.Module | None = None,
        perceptual: nn.Module | None = None,
        gen_start: int | None = None,
        gen_ramp: int = 0,
        delta: float = 1e-6,
    ) -> None:
        if discriminator is None:
            discriminator = NLayerDiscriminator(disc_in_channels, disc_ndf, disc_num_layers, use_actnorm=use_actnorm)
        if perceptual is None and perceptual_weight != 0:
            perceptual = LPIPSLoss("vgg")
        super().__init__(
            discriminator,
            perceptual,
            disc_start=disc_start,
            disc_loss=disc_loss,
            pixelloss_weight=pixelloss_weight,
            perceptual_weight=perceptual_weight,
            disc_weight=disc_weight,
            disc_factor=disc_factor,
            codebook_weight=codebook_weight,
            gen_start=gen_start,
            gen_ramp=gen_ramp,
            delta=delta,
        )
        self.disc_conditional = disc_conditional

    def _check_inputs(self, images: Tensor, reconstructions: Tensor, cond: Tensor | None) -> None:
        super()._check_inputs(images, reconstructions, cond)
        if (cond is not None) != self.disc_conditional:
            raise ValueError(
                f"cond must be given if and only if disc_conditional is set, but got disc_conditional="
                f"{self.disc_conditional} and cond={'None' if cond is None else f'of shape {tuple(cond.shape)}'}."
            )
