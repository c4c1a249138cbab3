"""Encoder and decoder: the original's values and names, any size, every mode of use."""

import copy
import pickle

import pytest
import torch
from torch import nn

from vq_components.networks import Decoder, Encoder

CONFIG = {"ch": 4, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4], "resolution": 8, "z_channels": 6}
F16 = {"ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16], "resolution": 256}


def build_encoder(**changes):
    return Encoder(**{**CONFIG, "in_channels": 3, **changes})


def build_decoder(**changes):
    return Decoder(**{**CONFIG, "out_ch": 3, **changes})


def build(name, **changes):
    """A small network and an input for it."""
    if name == "encoder":
        return build_encoder(**changes), torch.rand(2, 3, 8, 12) * 2 - 1
    return build_decoder(**changes), torch.randn(2, 6, 4, 6)


BOTH = pytest.mark.parametrize("name", ["encoder", "decoder"])


def step(network, x, *, call=None):
    """Result and gradients of a forward and a backward, from the same random state each time."""
    torch.manual_seed(1)
    network.zero_grad()
    result = (network if call is None else call)(x)
    result.square().sum().backward()
    return [result.detach(), *(parameter.grad for parameter in network.parameters())]


def weights_of(golden, part):
    return {k.removeprefix(f"{part}."): v for k, v in golden.weights.items() if k.startswith(f"{part}.")}


def test_encoder_gives_the_originals_values(golden):
    reference = golden("vqgan")
    config = reference.args["ddconfig"]
    encoder = Encoder(**{k: v for k, v in config.items() if k not in ("out_ch", "double_z")}).eval()
    encoder.load_state_dict(weights_of(reference, "encoder"))
    # Float32 sums of another order: 1e-5 of values around 1.
    torch.testing.assert_close(encoder(reference.tensors["x"]), reference.tensors["encoded"], rtol=1e-5, atol=1e-5)


def test_decoder_gives_the_originals_values(golden):
    reference = golden("vqgan")
    config = reference.args["ddconfig"]
    decoder = Decoder(**{k: v for k, v in config.items() if k not in ("in_channels", "double_z")}).eval()
    decoder.load_state_dict(weights_of(reference, "decoder"))
    post_quant_conv = nn.Conv2d(8, 16, 1)
    post_quant_conv.load_state_dict(weights_of(reference, "post_quant_conv"))
    reconstruction = decoder(post_quant_conv(reference.tensors["quantized"]))
    torch.testing.assert_close(reconstruction, reference.tensors["reconstruction"], rtol=1e-5, atol=1e-5)


def test_the_published_f16_config_has_the_published_entries():
    """The file has 398 entries of 89,625,293 elements, of which 60 of 17,877,322 are not the autoencoder's."""
    with torch.device("meta"):
        networks = Encoder(in_channels=3, z_channels=256, **F16), Decoder(out_ch=3, z_channels=256, **F16)
    entries = {f"{i}.{key}": value for i, network in enumerate(networks) for key, value in network.state_dict().items()}
    assert len(entries) == 398 - 60
    assert sum(value.numel() for value in entries.values()) == 89_625_293 - 17_877_322
    assert entries["0.down.4.attn.1.proj_out.weight"].shape == (512, 512, 1, 1)
    assert entries["1.up.3.block.0.nin_shortcut.weight"].shape == (256, 512, 1, 1)
    assert "0.down.4.downsample.conv.weight" not in entries
    assert "1.up.0.upsample.conv.weight" not in entries


def test_attention_is_where_attn_resolutions_says():
    encoder = build_encoder(ch_mult=[1, 1, 1], resolution=32, attn_resolutions=[32, 8])
    decoder = build_decoder(ch_mult=[1, 1, 1], resolution=32, attn_resolutions=(16,))
    assert [len(level.attn) for level in encoder.down] == [1, 0, 1]
    assert [len(level.attn) for level in decoder.up] == [0, 2, 0]


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (12, 20), (64, 4)])
def test_any_size_that_the_stride_divides(size):
    encoder, decoder = build_encoder(ch_mult=[1, 1, 1], attn_resolutions=[2]), build_decoder(ch_mult=[1, 1, 1])
    images = torch.rand(2, 3, *size) * 2 - 1
    z = encoder(images)
    assert encoder.stride == decoder.stride == 4
    assert z.shape == (2, 6, size[0] // 4, size[1] // 4)
    assert decoder(z).shape == images.shape


def test_an_image_does_not_depend_on_its_batch_and_a_batch_may_be_empty():
    encoder, images = build("encoder")
    torch.testing.assert_close(encoder(images)[1:], encoder(images[1:]))
    assert encoder(images[:0]).shape == (0, 6, 4, 6)


@BOTH
def test_every_parameter_gets_a_gradient(name):
    network, x = build(name)
    _, *gradients = step(network, x)
    # A constant added to all keys shifts all scores of a query alike, which softmax() does not see.
    blind = {key for key, _ in network.named_parameters() if key.endswith(".k.bias")}
    names = [key for key, _ in network.named_parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert {key for key, gradient in zip(names, gradients, strict=True) if gradient.abs().max() < 1e-6} <= blind


@BOTH
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_checkpointing_changes_no_value_and_no_gradient(name, dropout):
    plain, x = build(name, dropout=dropout)
    thrifty, _ = build(name, dropout=dropout, checkpoint_activations=True)
    thrifty.load_state_dict(plain.state_dict())
    for expected, actual in zip(step(plain, x), step(thrifty, x), strict=True):
        assert torch.equal(actual, expected)


@BOTH
def test_checkpointing_keeps_less_and_only_in_training_with_autograd(name):
    network, x = build(name, checkpoint_activations=True)
    blocks = [m for m in network.modules() if type(m).__name__ in ("ResnetBlock", "AttnBlock")]
    calls = []
    for block in blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    step(network, x)
    assert len(calls) == 2 * len(blocks)
    calls.clear()
    step(network.eval(), x)
    with torch.no_grad():
        network.train()(x)
    assert len(calls) == 2 * len(blocks)


@BOTH
def test_dropout_is_in_every_resnet_block_and_only_in_training(name):
    network, x = build(name, dropout=0.5)
    dropouts = [m.dropout.p for m in network.modules() if type(m).__name__ == "ResnetBlock"]
    assert dropouts == [0.5] * (4 if name == "encoder" else 6)
    assert not torch.equal(network(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


@BOTH
def test_compiles_without_a_break_to_the_same_values(name):
    network, x = build(name, ch_mult=[1], attn_resolutions=[], dropout=0.5, checkpoint_activations=True)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(step(network, x, call=compiled), step(network, x), strict=True):
        torch.testing.assert_close(actual, expected)


@BOTH
def test_forward_only_computes(name, capsys):
    network, x = build(name)
    attributes = {key: dict(vars(module)) for key, module in network.named_modules()}
    state, before = copy.deepcopy(network.state_dict()), x.clone()
    network(x)
    assert capsys.readouterr() == ("", "")
    assert {key: dict(vars(module)) for key, module in network.named_modules()} == attributes
    assert torch.equal(x, before)
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key])


@BOTH
def test_survives_copies_pickle_and_a_strict_state_dict(name):
    network, x = build(name)
    fresh, _ = build(name)
    fresh.load_state_dict(network.state_dict())
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), fresh):
        assert torch.equal(twin(x), network(x))


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_types_stay_near_float32(name, dtype):
    network, x = build(name)
    exact = network(x)
    with torch.autocast("cpu", dtype):
        rounded = network(x)
    assert rounded.dtype == dtype
    # Half types keep 8 or 11 bits; some ten layers deep that is a few percent.
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.1)
    assert network.to(dtype)(x.to(dtype)).dtype == dtype


@BOTH
def test_channels_last_stays_channels_last(name):
    network, x = build(name)
    expected = network(x)
    result = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_last_layer_is_the_weight_that_makes_the_images():
    decoder = build_decoder()
    assert decoder.last_layer is decoder.conv_out.weight
    assert isinstance(decoder.last_layer, nn.Parameter)
