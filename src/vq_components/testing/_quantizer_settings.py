"""Checks of a quantizer: that what is set has an effect."""

import torch

from ._compare import clone, differ
from ._quantizer_subject import QUANTIZER, QuantizerSubject, has_codebook, has_setter
from ._quantizer_updates import _can_be_set, _entries, _stop_revival
from ._report import require

_SETTINGS = (
    "temperature",
    "kl_weight",
    "commitment_weight",
    "codebook_weight",
    "entropy_weight",
    "diversity_weight",
    "index_weight",
)


def _has_temperature(subject: QuantizerSubject) -> bool:
    return isinstance(getattr(subject.fresh(), "temperature", None), float)


@QUANTIZER.check(
    rule="a quantizer that is declared stochastic draws in training: another seed gives another result",
    cause="noise that is switched off, or multiplied by zero",
    applies=lambda subject: subject.traits.strict and subject.traits.stochastic,
)
def check_noise(subject: QuantizerSubject) -> None:
    """Guards exploration: Gumbel noise, dropout of stages.

    Fails it::

        weights = logits.softmax(dim=1)  # in training as in evaluation
    """
    module, z = subject.started(), subject.input(64)
    results = [subject.call_copy(module, z, seed=seed) for seed in range(1, 9)]
    alike = all(torch.equal(result.indices, results[0].indices) for result in results[1:])
    require(not alike, "eight seeds agree in every index")


@QUANTIZER.check(
    rule="a temperature of noise makes choices softer: what is drawn is the same at each",
    cause="noise that is added after the division by the temperature",
    applies=lambda subject: subject.traits.strict and subject.traits.stochastic and _has_temperature(subject),
)
def check_noise_temperature(subject: QuantizerSubject) -> None:
    """Guards annealing: Gumbel-max draws from softmax(logits), whatever the temperature is.

    Fails it::

        weights = (logits / temperature + noise).softmax(dim=1)  # must be ((logits + noise) / temperature)
    """
    module, z = subject.started(), 3.0 * subject.input(200)
    drawn = []
    for factor in (0.3, 1.0, 3.0):
        changed = clone(module)
        changed.temperature = factor * module.temperature
        drawn.append(subject.call_copy(changed, z).indices)
    for indices in drawn[1:]:
        differ = int((indices != drawn[0]).sum())
        require(differ == 0, f"{differ} of {indices.numel()} indices change with the temperature, at one seed")


@QUANTIZER.check(
    rule="every weight and temperature that it has changes the loss or a gradient in training",
    cause="a setting that is stored and never read",
    applies=lambda subject: subject.traits.strict,
)
def check_settings_have_effect(subject: QuantizerSubject) -> None:
    """Guards experiments with a setting against measuring nothing.

    Fails it::

        weights = F.gumbel_softmax(logits, dim=1)  # self.temperature is not handed on
    """
    module, z = subject.started(), subject.input(64)
    usual = subject.input_gradient(module, z)
    for name in _SETTINGS:
        value = getattr(module, name, None)
        if isinstance(value, float):
            changed = clone(module)
            setattr(changed, name, 3.0 * value)
            pairs = zip(subject.input_gradient(changed, z), usual, strict=True)
            same = all(torch.allclose(*pair, rtol=1e-5, atol=1e-9) for pair in pairs)
            require(not same, f"{name} = {value} and {3.0 * value} give one loss and one gradient")


@QUANTIZER.check(
    rule="a new codebook's entries are as far apart as is declared",
    cause="1 / K and 1 / D confused, a variance for a standard deviation, or torch's own default",
    applies=lambda subject: has_codebook(subject) and subject.traits.initial_spread is not None,
)
def check_initial_entries(subject: QuantizerSubject) -> None:
    """Guards the start of a codebook, up to the chance of its draw: within a factor of 1.5.

    Fails it::

        nn.init.uniform_(self.weight, -1 / codebook_dim, 1 / codebook_dim)  # must be 1 / codebook_size
    """
    entries, expected = subject.codebook(subject.fresh()).double(), subject.traits.initial_spread or 0.0
    found = float((entries - entries.mean(dim=0)).square().mean().sqrt())
    text = f"root mean square {found:.4g} about the mean entry, not {expected:.4g}"
    require(expected / 1.5 <= found <= expected * 1.5, text)


@QUANTIZER.check(
    rule="after set_codebook_(entries) the codebook is these entries",
    cause="a projection, a bias or a scale that is left in front of them",
    applies=lambda subject: subject.traits.strict and has_setter(subject),
)
def check_set_codebook_value(subject: QuantizerSubject) -> None:
    """Guards codebooks that are computed from parameters.

    Fails it::

        self.embedding.weight.copy_(entries)  # and the codebook is weight @ W + b
    """
    module = subject.started()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))  # as training leaves them
    entries = torch.nn.functional.normalize(torch.randn(subject.codebook(module).shape), dim=1)
    module.set_codebook_(entries)
    text = subject.about(subject.codebook(module), entries)
    require(not text, text)
    if subject.traits.distance == "cosine":
        longer, z = clone(module), subject.input(64)
        longer.set_codebook_(5.0 * entries)
        for name in ("at once", "after an update"):
            text = subject.about(subject.codebook(longer), subject.codebook(module))
            require(not text, f"entries five times as long, {name}: {text}")
            for each in (module, longer):
                subject.call(each, z)
                subject.update(each)


@QUANTIZER.check(
    rule="set_codebook_ replaces the entries for good, and forgets what was counted",
    cause="averages of the old entries that the next update writes back",
    applies=_can_be_set,
)
def check_set_codebook(subject: QuantizerSubject) -> None:
    """Guards a codebook of one's own.

    Fails it::

        self.weight.copy_(codebook)  # and embed_avg still holds the old one
    """
    for module in (subject.fresh(), subject.started()):
        _stop_revival(module)
        subject.call(module, subject.input(64))
        entries = _entries(subject)
        module.set_codebook_(entries)
        require(torch.equal(subject.codebook(module), entries), "the entries are not those that were set")
        at_once = clone(module)
        subject.call(at_once, subject.from_vectors(entries))
        at_once.update_()
        text = differ(subject.codebook(at_once), entries, rtol=1e-4, atol=1e-4)
        require(not text, f"what was counted before enters the next update: {text}")
        module.update_()
        require(torch.equal(subject.codebook(module), entries), "an update brought back what was counted before")
        subject.call(module, subject.from_vectors(entries))
        module.update_()
        text = differ(subject.codebook(module), entries, rtol=1e-4, atol=1e-4)
        require(not text, f"after an update with vectors equal to the entries: {text}")
