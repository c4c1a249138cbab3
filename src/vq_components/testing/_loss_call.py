"""First checks of a loss: whether it can be called as declared, and what holds for any declaration."""

from functools import partial

from torch import Tensor, nn

from ._compare import clone
from ._engine import BASIC, GATE
from ._loss_adapters import Scene
from ._loss_players import generator_grads
from ._loss_subject import LOSS, LossSubject
from ._report import attempt, require


@LOSS.check(
    rule="both players' calls give (loss, terms) of one number and a dict, and the discriminator is known",
    cause="traits that do not fit, such as image_shape=; or an adapter without network= that says where the "
    "discriminator is, or whose functions return a loss alone",
    rank=GATE,
)
def check_loss_call(loss: LossSubject) -> None:
    """Guards the other checks against traits and adapters that do not fit: while it fails, they are not run.

    Fails it::

        LossAdapter(generator=lambda module, scene, step: module(...), ...)  # must be (loss, {})
    """
    module, scene = loss.fresh(), loss.scene()
    network = attempt("the adapter's network", partial(loss.adapter.network, module))
    require(isinstance(network, nn.Module), f"the adapter's network gives {type(network).__name__}, no module")
    logits = attempt(
        "the adapter's network, called with images,", partial(network, loss.with_condition(scene.images, scene))
    )
    what = "not one tensor of logits: wrap it in a module that joins them"
    require(isinstance(logits, Tensor), f"the discriminator gives {type(logits).__name__}, {what}")
    for name, call in (("generator", loss.generator), ("discriminator", loss.discriminator)):
        answer = attempt(f"the adapter's {name}", partial(call, module, scene, loss.full))
        pair = isinstance(answer, tuple) and len(answer) == 2
        require(pair, f"{name} gives {type(answer).__name__}, not (loss, terms)")
        value, terms = answer
        number = isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()
        require(number, f"{name}'s loss is {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}")
        require(isinstance(terms, dict), f"{name}'s terms are {type(terms).__name__}; {{}} if there are none")


@LOSS.check(
    rule="the generator's loss hands the quantizer's loss on, with a weight above 0",
    cause="a detach, or a loss that is taken and never added; declare codebook=0 where it is added elsewhere",
    applies=lambda subject: subject.traits.codebook != 0,
    rank=BASIC,
)
def check_quantizer_loss_counts(loss: LossSubject) -> None:
    """Guards the quantizer's part of the loss, whatever its weight is.

    Fails it::

        loss = reconstruction + weight * generator + codebook_weight * quantizer_loss.detach()
    """
    module, scene = loss.used(), loss.scene()
    for step in (loss.before(loss.traits.gen_start), loss.full):
        _, grads = generator_grads(loss, module, scene, step)
        require(float(grads[2]) > 0, f"step {step}: its gradient there is {float(grads[2]):.3g}")


@LOSS.check(
    rule="losses are means over images: a batch that is repeated gives the same numbers",
    cause="a sum over the batch, or a product with its size: the learning rate then depends on it. Declare "
    "stochastic=True if it draws, or looks at the batch as a whole",
    applies=lambda subject: not subject.traits.stochastic,
    rank=BASIC,
)
def check_loss_of_repeated_images(loss: LossSubject) -> None:
    """Guards gradients from the size of the batch.

    Fails it::

        loss = (images - reconstructions).abs().mean() * len(images)
    """
    scene = loss.scene()
    twice = _repeated(scene)
    start = loss.used()
    perceptual = loss.adapter.perceptual(start)
    if perceptual is not None:
        perceptual.eval()  # what it draws is another check's concern
    for step in (loss.before(loss.traits.gen_start), loss.full):
        once, grads = generator_grads(loss, clone(start), scene, step)
        again, others = generator_grads(loss, clone(start), twice, step)
        numbers = f"step {step}: the generator's loss is {float(once):.6g}, of the batch twice {float(again):.6g}"
        require(not loss.differ(again, once), numbers)
        text = loss.differ(others[1], grads[1])
        require(not text, f"step {step}: of the batch twice, the gradient at the last layer: {text}")
    values = [loss.discriminator(clone(start), each, loss.full)[0].detach() for each in (scene, twice)]
    numbers = f"the discriminator's loss is {float(values[0]):.6g}, of the batch twice {float(values[1]):.6g}"
    require(not loss.differ(values[1], values[0]), numbers)


def _repeated(scene: Scene) -> Scene:
    """The same images twice, with the same leaves."""
    return scene._replace(
        images=scene.images.repeat(2, 1, 1, 1),
        reconstructions=scene.reconstructions.repeat(2, 1, 1, 1),
        cond=None if scene.cond is None else scene.cond.repeat(2, 1, 1, 1),
    )
