"""VQModel: the original end to end, its two halves, its parts of any make."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

from vq_components._model import VQModel, VQModelOutput
from vq_components.networks import Decoder, Encoder
from vq_components.quantizers import AbstractQuantizer, EMAVectorQuantizer, QuantizerOutput, VectorQuantizer

CONFIG = {"ch": 4, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4], "resolution": 8, "z_channels": 6}


class Half(nn.Conv2d):
    """Smallest encoder: halves the resolution; says nothing of its channels."""

    def __init__(self):
        super().__init__(3, 6, 2, stride=2)


class Double(nn.ConvTranspose2d):
    """Smallest decoder: doubles the resolution; says nothing of its channels."""

    def __init__(self):
        super().__init__(6, 3, 2, stride=2)


class Signs(AbstractQuantizer):
    """Two numbers per vector, 0 or 1, decoded to five channels: more than one index, another width out than in."""

    def __init__(self, **kwargs):
        super().__init__(2, codebook_size=2, dim_out=5, index_shape=(2,), **kwargs)

    def _quantize(self, z, live):
        indices = (z > 0).long()
        return QuantizerOutput(
            self._decode(indices) + 0 * z.sum(), indices, z.square().mean(), {"size": z.detach().norm()}
        )

    def _decode(self, indices):
        return indices.float().repeat(1, 3)[:, :5]


def build(quantizer=None, **changes):
    config = {**CONFIG, **changes}
    quantizer = VectorQuantizer(16, 4) if quantizer is None else quantizer
    return VQModel(Encoder(in_channels=3, **config), quantizer, Decoder(out_ch=3, **config))


def build_small(quantizer=None):
    return VQModel(Half(), VectorQuantizer(16, 4) if quantizer is None else quantizer, Double(), z_channels=6)


@pytest.fixture(autouse=True)
def one_thread():
    """The networks here are tiny: on a busy machine, waiting for a second thread takes longer than all they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 12) * 2 - 1


def everything(model):
    """All parameters and buffers, those that are not saved included."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def test_loads_the_originals_state_dict_strictly_and_gives_its_values(golden):
    reference = golden("vqgan")
    config = reference.args["ddconfig"]
    encoder = Encoder(**{k: v for k, v in config.items() if k not in ("out_ch", "double_z")})
    decoder = Decoder(**{k: v for k, v in config.items() if k not in ("in_channels", "double_z")})
    # The original's loss convention: its beta of 0.25 weights the codebook term.
    quantizer = VectorQuantizer(64, 8, commitment_weight=1.0, codebook_weight=0.25, init="uniform", revival=None)
    model = VQModel(encoder, quantizer, decoder).eval()
    model.load_state_dict(reference.weights)

    values = reference.tensors
    result = model(values["x"])
    torch.testing.assert_close(model.features(values["x"]), values["z"], rtol=1e-5, atol=1e-5)
    assert torch.equal(result.indices.flatten(), values["indices"])
    torch.testing.assert_close(result.reconstructions, values["reconstruction"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.loss, values["loss"], rtol=1e-5, atol=0)
    # The original's straight-through sum z + (q - z) rounds.
    torch.testing.assert_close(quantizer.decode(result.indices), values["quantized"], rtol=0, atol=1e-7)


def test_forward_is_the_parts_one_after_the_other(images):
    model = build().eval()
    z = model.quant_conv(model.encoder(images))
    quantized, indices, loss, terms = model.quantize(z)
    result = model(images)
    assert isinstance(result, VQModelOutput)
    assert torch.equal(model.features(images), z)
    assert torch.equal(result.reconstructions, model.decoder(model.post_quant_conv(quantized)))
    assert torch.equal(result.indices, indices)
    assert torch.equal(result.loss, loss)
    assert result.terms == terms


@pytest.mark.parametrize("quantizer", [VectorQuantizer(16, 4), EMAVectorQuantizer(16, 4), Signs()])
@pytest.mark.parametrize("model_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("image_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_halves_equal_the_whole_bit_for_bit(images, quantizer, model_format, image_format, dtype):
    model = build(copy.deepcopy(quantizer)).eval().to(memory_format=model_format)
    images = images.contiguous(memory_format=image_format)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        result = model(images)
        assert torch.equal(model.encode(images), result.indices)
        assert torch.equal(model.decode(result.indices), result.reconstructions)
    assert result.indices.shape == (2, 4, 6, *quantizer.index_shape)
    assert result.reconstructions.shape == images.shape
    assert result.reconstructions.is_contiguous(memory_format=model_format)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_codebook_may_have_another_type_than_the_networks(images, dtype):
    model = build().eval()
    for part in (model.encoder, model.quant_conv, model.post_quant_conv, model.decoder):
        part.to(dtype)
    result = model(images.to(dtype))
    assert result.reconstructions.dtype == dtype
    assert model.quantize.decode(result.indices).dtype == torch.float32
    assert torch.equal(model.decode(result.indices), result.reconstructions)


def test_convolutions_are_sized_from_the_parts():
    model = build(Signs())
    assert model.quant_conv.weight.shape == (2, 6, 1, 1)
    assert model.post_quant_conv.weight.shape == (6, 5, 1, 1)


@pytest.mark.parametrize("training", [True, False])
def test_encode_and_decode_change_nothing(images, training):
    model = build().train(training)
    before = copy.deepcopy(everything(model))
    indices = model.encode(images)
    model.decode(indices)
    assert indices.dtype == torch.int64
    for key, value in everything(model).items():
        assert torch.equal(value, before[key]), key


def test_encode_keeps_nothing_for_a_backward(images):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        build().encode(images)
    assert not kept


def test_decode_trains_the_decoder(images):
    model = build()
    model.decode(model.encode(images)).square().sum().backward()
    assert model.last_layer.grad.any()
    assert model.post_quant_conv.weight.grad.any()


def test_every_parameter_gets_a_gradient(images):
    model = build()
    result = model(images)
    (result.reconstructions.square().mean() + result.loss).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.encoder.conv_in.weight.grad.any()


def test_forward_changes_nothing_but_the_quantizer(images, capsys):
    model = build()
    attributes = {key: dict(vars(module)) for key, module in model.named_modules() if not key.startswith("quantize")}
    before, state = images.clone(), copy.deepcopy(model.state_dict())
    model(images)
    assert capsys.readouterr() == ("", "")
    assert torch.equal(images, before)
    for key, module in model.named_modules():
        assert key.startswith("quantize") or dict(vars(module)) == attributes[key]
    for key, value in model.state_dict().items():
        assert key.startswith("quantize") or torch.equal(value, state[key])


def test_update_is_the_quantizers(images):
    model, twin = build_small(EMAVectorQuantizer(16, 4)).train(), EMAVectorQuantizer(16, 4)
    twin.load_state_dict(model.quantize.state_dict())
    for _ in range(2):
        z = model.features(images).detach()
        model(images)
        model.update_()
        twin(z)
        twin.update_()
    assert torch.equal(model.quantize.codebook, twin.codebook)


def test_update_after_is_the_quantizers(images):
    model = build_small(EMAVectorQuantizer(16, 4)).train()
    model(images)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = model.update_after(optimizer)
    model(images)
    before = model.quantize.codebook.clone()
    optimizer.step()
    updated = model.quantize.codebook.clone()
    assert not torch.equal(updated, before)
    handle.remove()
    model(images)
    pending = model.quantize.codebook.clone()
    optimizer.step()
    assert torch.equal(model.quantize.codebook, pending)


def test_last_layer_is_the_decoders():
    model = build()
    assert model.last_layer is model.decoder.conv_out.weight


def test_a_decoder_without_last_layer_is_an_error_that_says_so():
    text = (
        "VQModel.last_layer is that of its decoder, but Double has none. "
        "Give it a property last_layer that returns the weight of its last layer."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        _ = build_small().last_layer


def test_parts_that_do_not_tell_their_channels_need_z_channels(images):
    result = build_small()(images)
    assert result.reconstructions.shape == images.shape
    tells = Encoder(in_channels=3, **CONFIG)
    for encoder, decoder, name in ((Half(), Double(), "encoder"), (tells, Double(), "decoder")):
        text = (
            f"VQModel needs the number of latent channels of its {name}, "
            f"but {type(encoder if name == 'encoder' else decoder).__name__} has no attribute z_channels. "
            f"Pass z_channels= to VQModel, or give the {name} the attribute."
        )
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            VQModel(encoder, VectorQuantizer(16, 4), decoder)


def test_z_channels_must_not_contradict_the_parts():
    parts = Encoder(in_channels=3, **CONFIG), VectorQuantizer(16, 4), Decoder(out_ch=3, **CONFIG)
    assert VQModel(*parts, z_channels=6).quant_conv.in_channels == 6
    text = (
        "VQModel reads the number of latent channels from its encoder, whose z_channels is 6, but got z_channels=8. "
        "Leave the argument out."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        VQModel(*parts, z_channels=8)


@pytest.mark.parametrize("channel_dim", [-1, 2])
def test_the_quantizer_must_have_its_channels_first(channel_dim):
    text = (
        f"VQModel gives its quantizer latents of shape (B, C, H, W), but VectorQuantizer has "
        f"channel_dim={channel_dim}. Build it with channel_dim=1."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        build_small(VectorQuantizer(16, 4, channel_dim=channel_dim))
    assert build_small(VectorQuantizer(16, 4, channel_dim=-3)).eval().decode(torch.zeros(1, 4, 6).long()).ndim == 4


@pytest.mark.parametrize("method", ["forward", "encode", "features"])
def test_images_are_checked_at_the_door(method):
    call = getattr(build_small(), method)
    text = (
        "VQModel takes images of shape (B, C, H, W), but got shape (3, 8, 12). "
        "Pass a batch, a single image as images[None]."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        call(torch.zeros(3, 8, 12))
    text = (
        "VQModel takes floating-point images in [-1, 1], but got torch.uint8. "
        "Convert 8-bit images with images / 127.5 - 1."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        call(torch.zeros(2, 3, 8, 12, dtype=torch.uint8))


def test_compiles_without_a_break_to_the_same_values(images):
    model = build_small(Signs())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(images)[:3], model(images)[:3], strict=True):
        torch.testing.assert_close(actual, expected)


def test_survives_copies_pickle_and_a_strict_state_dict(images):
    model, fresh = build(), build()
    model(images)
    model.eval()
    fresh.load_state_dict(model.state_dict())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh.eval()):
        for actual, expected in zip(twin(images)[:3], model(images)[:3], strict=True):
            assert torch.equal(actual, expected)
