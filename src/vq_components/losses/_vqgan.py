"""The objective of VQ-GAN, for both of its players."""

import operator

import torch
from torch import Tensor, nn

from ..functional import _adversarial as adversarial
from ._gradients import balance_at, call_on_copies, values_and_gradient, with_gradient
from ._parts import (
    PAIRS,
    LossOutput,
    as_terms,
    check_distance,
    check_inputs,
    check_perceptual_weight,
    check_settings,
    check_tensor,
    with_condition,
)


class VQGANLoss(nn.Module):
    """The objective of VQ-GAN: reconstruct, and fool a discriminator that learns to tell reconstructions from images.

    The generator, which is encoder, quantizer and decoder, minimizes

        ``pixelloss_weight * mean|x - x̂| + perceptual_weight * mean d(x, x̂) + codebook_weight * quantizer_loss
        + lambda * disc_weight * disc_factor * ramp * L_G(D(x̂))``

    and the discriminator ``disc_factor * L_D(D(x), D(x̂))``, with ``L_G, L_D`` a pair of :mod:`vq_components.functional`
    and ``lambda`` its :func:`~vq_components.functional.adaptive_weight` of the first two terms and ``L_G``.

    *Steps.* The discriminator learns from ``disc_start`` on. The generator follows it from ``gen_start`` on, which is
    best later, because an untrained discriminator points nowhere; ``ramp = min(1, (step - gen_start + 1) / gen_ramp)``
    grows from ``1 / gen_ramp`` at ``gen_start``, and is 1 for ``gen_ramp=0``. Before its start, a pass does not call
    the discriminator; with ``disc_factor=0`` none ever does. Nothing here counts: ``step`` is an argument.

    *The generator's pass* takes one gradient through each loss network, at the reconstructions; the returned loss hands
    their weighted sum on, and can be differentiated once only. The discriminator runs in its own mode on copies, the
    perceptual module as it is; the pass leaves gradients and buffers of the first alone, and gradients of the second.
    With autograd off there is no ``lambda``: the adversarial term is then logged, and not part of the loss.

    *Around it.* In ``DistributedDataParallel`` wrap model and discriminator, not this module; each process has its own
    ``lambda``. ``torch.compile`` breaks its graph around the generator's pass; docs/how-to/compile-and-export.md says
    what to mind. Before ``disc_start`` the discriminator gets no gradients, which ``GradScaler.step`` refuses.

    *The plain VQ-VAE objective* of van den Oord et al. (2017), ``-log p(x | z_q)`` and the quantizer's loss, needs no
    class: with a Gaussian ``p``, it is ``F.mse_loss(reconstructions, images) + quantizer_loss`` up to a factor.

    Args:
        discriminator: images to logits of any shape, such as :class:`NLayerDiscriminator`; compiled or in DDP or not.
        perceptual: called as ``perceptual(images, reconstructions)``, gives ``()``, ``(B,)`` or ``(B, 1, 1, 1)``, such
            as :class:`LPIPSLoss`. May be None where ``perceptual_weight`` is 0; it is then not called.
        disc_start: first step in which the discriminator learns.
        disc_loss: ``"hinge"``, ``"vanilla"`` or ``"non_saturating"``.
        pixelloss_weight: weight of the mean absolute difference.
        perceptual_weight: weight of the perceptual distance.
        disc_weight: weight of the adversarial term, next to ``lambda``.
        disc_factor: weight of everything adversarial, in both passes.
        codebook_weight: weight of the quantizer's loss, whose terms have weights of their own already.
        gen_start: first step in which the generator follows the discriminator; ``disc_start`` unless told.
        gen_ramp: number of steps in which the adversarial term grows to its full weight.
        delta: that of :func:`~vq_components.functional.adaptive_weight`.

    Raises:
        ValueError: from the constructor, if an argument is out of range.

    References:
        Esser, Rombach, Ommer (2021), "Taming Transformers for High-Resolution Image Synthesis": lambda and the whole
        objective, with their ``L_rec`` the perceptual term and their ``L_VQ`` the quantizer's loss with the pixels'.

    Example:
        >>> from vq_components import NLayerDiscriminator, VQGANLoss
        >>> decoder, discriminator = torch.nn.Conv2d(4, 3, 3, padding=1), NLayerDiscriminator(ndf=8, n_layers=1)
        >>> objective = VQGANLoss(discriminator, None, perceptual_weight=0.0, disc_start=0, gen_start=1000)
        >>> images, reconstructions = torch.rand(2, 3, 16, 16) * 2 - 1, decoder(torch.randn(2, 4, 16, 16))
        >>> others = dict(quantizer_loss=torch.tensor(0.0), last_layer=decoder.weight)
        >>> loss, terms = objective.generator_loss(images, reconstructions, step=0, **others)
        >>> loss.backward()
        >>> loss, terms = objective.discriminator_loss(images, reconstructions, step=0)
        >>> loss.backward()
        >>> list(terms)
        ['discriminator', 'logits_real', 'logits_fake']
    """

    def __init__(
        self,
        discriminator: nn.Module,
        perceptual: nn.Module | None,
        *,
        disc_start: int,
        disc_loss: str = "hinge",
        pixelloss_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        disc_weight: float = 1.0,
        disc_factor: float = 1.0,
        codebook_weight: float = 1.0,
        gen_start: int | None = None,
        gen_ramp: int = 0,
        delta: float = 1e-6,
    ) -> None:
        super().__init__()
        weights = {
            "pixelloss_weight": pixelloss_weight,
            "perceptual_weight": perceptual_weight,
            "disc_weight": disc_weight,
            "disc_factor": disc_factor,
            "codebook_weight": codebook_weight,
            "delta": delta,
        }
        gen_start = disc_start if gen_start is None else gen_start
        check_settings(disc_loss, disc_start, gen_start, gen_ramp, weights)
        check_perceptual_weight(perceptual, perceptual_weight)
        self.discriminator = discriminator
        self.perceptual = perceptual
        self.disc_start = disc_start
        self.disc_loss = disc_loss
        self.pixelloss_weight = pixelloss_weight
        self.perceptual_weight = perceptual_weight
        self.disc_weight = disc_weight
        self.disc_factor = disc_factor
        self.codebook_weight = codebook_weight
        self.gen_start = gen_start
        self.gen_ramp = gen_ramp
        self.delta = delta

    def generator_loss(
        self,
        images: Tensor,
        reconstructions: Tensor,
        *,
        quantizer_loss: Tensor,
        last_layer: Tensor | None,
        step: int,
        cond: Tensor | None = None,
    ) -> LossOutput:
        """Loss of encoder, quantizer and decoder.

        Args:
            images: ``(B, C, H, W)`` in ``[-1, 1]``. They receive no gradient.
            reconstructions: what the decoder made of them, of the same shape.
            quantizer_loss: what the quantizer returned, one number. It is added with its own graph.
            last_layer: the weight of the decoder's last layer, as the forward pass used it. Before ``gen_start``, and
                with autograd off, it is not needed and may be None.
            step: number of training steps before this one.
            cond: for a conditional discriminator, ``(B, C', H, W)``, given to it as further channels.

        Returns:
            The loss and its terms: ``pixel``, ``perceptual``, ``generator`` (the adversarial loss) and ``quantizer``,
            each unweighted; ``reconstruction``, the weighted sum of the first two; ``adaptive_weight``, lambda;
            ``logits_fake``, the mean logit. What is not computed is 0.

        Raises:
            ValueError: if shapes do not fit, or ``last_layer`` is frozen or not in the graph of ``reconstructions``.
            TypeError: if images are no floating point tensors, or the quantizer's loss or a needed layer is no tensor.
            RuntimeError: if ``reconstructions`` come from ``DistributedDataParallel(static_graph=True)`` before its
                first backward pass, or from a compiled graph that is made for a single backward pass.
        """
        self._check_inputs(images, reconstructions, cond)
        return self._generator_pass(
            images.detach(), reconstructions, quantizer_loss, last_layer, self._generator_factor(step), cond
        )

    def discriminator_loss(
        self, images: Tensor, reconstructions: Tensor, *, step: int, cond: Tensor | None = None
    ) -> LossOutput:
        """Loss of the discriminator: no gradient reaches images or reconstructions.

        Args:
            images: ``(B, C, H, W)`` in ``[-1, 1]``.
            reconstructions: of the same shape; those of the generator's pass will do.
            step: number of training steps before this one.
            cond: for a conditional discriminator, ``(B, C', H, W)``, given to it as further channels.

        Returns:
            The loss and its terms: ``discriminator``, before ``disc_factor``, and the mean logits ``logits_real`` and
            ``logits_fake``. Before ``disc_start`` all are 0, and ``backward()`` on the loss does nothing. A hinge
            loss that stays at 1 is that of a discriminator that sees no difference.

        Raises:
            ValueError: if shapes do not fit.
            TypeError: if images are not floating point.
        """
        self._check_inputs(images, reconstructions, cond)
        if operator.index(step) < self.disc_start or self.disc_factor == 0:
            nothing = torch.zeros((), device=reconstructions.device, requires_grad=True)
            return LossOutput(nothing, as_terms(discriminator=nothing, logits_real=nothing, logits_fake=nothing))
        real = self.discriminator(with_condition(images.detach(), cond))
        fake = self.discriminator(with_condition(reconstructions.detach(), cond))
        loss = PAIRS[self.disc_loss][0](logits_real=real, logits_fake=fake)
        means = {"logits_real": adversarial.mean(real), "logits_fake": adversarial.mean(fake)}
        return LossOutput(self.disc_factor * loss, as_terms(discriminator=loss, **means))

    def forward(
        self,
        codebook_loss: Tensor,
        inputs: Tensor,
        reconstructions: Tensor,
        optimizer_idx: int,
        global_step: int,
        last_layer: Tensor | None = None,
        cond: Tensor | None = None,
        split: str = "train",
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The original's call, for training code that has it: both players in one method.

        ``codebook_loss``, ``inputs`` and ``global_step`` are ``quantizer_loss``, ``images`` and ``step`` of
        :meth:`generator_loss` (``optimizer_idx=0``) and :meth:`discriminator_loss` (``optimizer_idx=1``).

        Returns:
            The loss and a log under the original's names, each behind ``split``. There ``rec_loss`` is pixels and
            perceptual distance together, weighted, like ``nll_loss``; ``d_weight`` is lambda times ``disc_weight``;
            ``disc_factor`` is 0 before ``gen_start`` and grows with the ramp; ``disc_loss`` is weighted with the
            constructor's.
        """
        if optimizer_idx not in (0, 1):
            raise ValueError(f"optimizer_idx must be 0 (generator) or 1 (discriminator), but got {optimizer_idx}.")
        if optimizer_idx == 1:
            loss, terms = self.discriminator_loss(inputs, reconstructions, step=global_step, cond=cond)
            log = {"disc_loss": loss, "logits_real": terms["logits_real"], "logits_fake": terms["logits_fake"]}
        else:
            loss, terms = self.generator_loss(
                inputs,
                reconstructions,
                quantizer_loss=codebook_loss,
                last_layer=last_layer,
                step=global_step,
                cond=cond,
            )
            log = {
                "total_loss": loss,
                "quant_loss": terms["quantizer"],
                "nll_loss": terms["reconstruction"],
                "rec_loss": terms["reconstruction"],
                "p_loss": terms["perceptual"],
                "d_weight": terms["adaptive_weight"] * self.disc_weight,
                "disc_factor": torch.full_like(terms["generator"], self._generator_factor(global_step)),
                "g_loss": terms["generator"],
            }
        return loss, as_terms(**{f"{split}/{name}": value for name, value in log.items()})

    @adversarial.not_compiled
    def _generator_pass(
        self,
        images: Tensor,
        reconstructions: Tensor,
        quantizer_loss: Tensor,
        last_layer: Tensor | None,
        factor: float,
        cond: Tensor | None,
    ) -> LossOutput:
        if factor > 0 and torch.is_grad_enabled():
            last_layer = adversarial.check_last_layer(last_layer, reconstructions, name="reconstructions")
        elif self.disc_factor > 0 and isinstance(last_layer, Tensor):
            adversarial.refuse_one_time_graph(reconstructions, last_layer)  # now, and not when the generator starts
        (reconstruction, pixel, perceptual), pull = values_and_gradient(
            lambda copy: self._reconstruct(images, copy, reconstructions.dtype), reconstructions
        )
        loss, gradient = reconstruction, pull
        generator = logits = weight = torch.zeros_like(reconstruction)
        if factor > 0:
            (generator, logits), push = values_and_gradient(
                lambda copy: self._fool(copy.to(reconstructions.dtype), cond), reconstructions
            )
            if last_layer is not None and pull is not None and push is not None:
                weight = balance_at(last_layer, reconstructions, pull, push, delta=self.delta)
                share = weight * self.disc_weight * factor
                loss, gradient = loss + share * generator, pull + share * push
        if gradient is not None:
            loss = with_gradient(loss, reconstructions, gradient)
        quantizer = adversarial.mean(check_tensor(quantizer_loss, name="quantizer_loss"))
        terms = as_terms(pixel=pixel, perceptual=perceptual, reconstruction=reconstruction)
        terms |= as_terms(generator=generator, quantizer=quantizer, adaptive_weight=weight, logits_fake=logits)
        return LossOutput(loss + self.codebook_weight * quantizer, terms)

    def _reconstruct(self, images: Tensor, copy: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Weighted sum of pixel and perceptual term, and the two; networks see reconstructions in their own dtype."""
        pixel = adversarial.mean((images - copy).abs())
        perceptual = torch.zeros_like(pixel)
        if self.perceptual is not None and self.perceptual_weight != 0:
            distance = self.perceptual(images, copy.to(dtype))
            check_distance(distance, batch=len(images))
            perceptual = adversarial.mean(distance)
        return self.pixelloss_weight * pixel + self.perceptual_weight * perceptual, pixel, perceptual

    def _fool(self, reconstructions: Tensor, cond: Tensor | None) -> tuple[Tensor, ...]:
        """The adversarial loss and the mean logit; the discriminator keeps nothing of it."""
        logits = call_on_copies(self.discriminator, with_condition(reconstructions, cond))
        return PAIRS[self.disc_loss][1](logits_fake=logits), adversarial.mean(logits)

    def _generator_factor(self, step: int) -> float:
        """``disc_factor * ramp``, 0 before ``gen_start``."""
        since = operator.index(step) - self.gen_start
        ramp = min(1.0, (since + 1) / self.gen_ramp) if self.gen_ramp > 0 else 1.0
        return self.disc_factor * ramp if since >= 0 else 0.0

    def _check_inputs(self, images: Tensor, reconstructions: Tensor, cond: Tensor | None) -> None:
        check_inputs(images, reconstructions, cond)
