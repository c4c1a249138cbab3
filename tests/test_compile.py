"""Every public module compiles to one graph for each mode, serves every batch and size, and is no different."""

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import squeezenet1_1

import vq_components as vq

SIZES = {"ch": 4, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (), "resolution": 8, "z_channels": 4}
LIVELY = vq.DeadCodeRevival(threshold=0.9, decay=0.0)
# Sizes that are no numbers of channels, nor each other: the compiler takes equal sizes for the same one.
SHAPES = [(5, 6, 10), (6, 10, 7), (8, 5, 9)]  # batch, height, width


def latents(batch, height, width):
    return (torch.randn(batch, 4, height, width, requires_grad=True),)


def images(batch, height, width):
    return (torch.randn(batch, 3, 4 * height, 4 * width, requires_grad=True),)


def pairs(batch, height, width):
    return (*(torch.rand(batch, 3, 8 * height, 8 * width, requires_grad=True) for _ in range(2)),)


def tokens(batch, height, width):
    return (torch.randint(7, (batch, height * width)),)


def tokens_and_conditions(batch, height, width):
    grids = torch.randint(7, (batch, 11))
    return (*tokens(batch, height, width), (torch.randint(3, (batch,)), grids, torch.rand(batch, 2)))


def build_model():
    quantizer = vq.EMAVectorQuantizer(16, 4, revival=LIVELY)
    return vq.VQModel(nn.Conv2d(3, 6, 2, stride=2), quantizer, nn.ConvTranspose2d(6, 3, 2, stride=2), z_channels=6)


def build_prior():
    conditions = (vq.ClassLabel(3), vq.SpatialTokens(7), vq.Coordinates(4), vq.StartToken())
    settings = {"image_vocab": 7, "conditions": conditions, "condition_dropout": 0.5}
    vocab_size = vq.ConditionalPrior.vocab_size(**settings)
    return vq.ConditionalPrior(vq.MinGPT(vocab_size, 90, n_layer=1, n_head=2, n_embd=8), pkeep=0.5, **settings)


MODULES = {
    vq.ActNorm: (lambda: vq.ActNorm(3), images),
    vq.ConditionalPrior: (build_prior, tokens_and_conditions),
    vq.Decoder: (lambda: vq.Decoder(out_ch=3, **SIZES), latents),
    vq.EMAVectorQuantizer: (lambda: vq.EMAVectorQuantizer(16, 4, revival=LIVELY), latents),
    vq.Encoder: (lambda: vq.Encoder(in_channels=3, **SIZES), images),
    vq.FSQ: (lambda: vq.FSQ((4, 3, 2, 2)), latents),
    vq.GroupedQuantizer: (lambda: vq.GroupedQuantizer([vq.VectorQuantizer(16, 2), vq.SimVQ(16, 2)]), latents),
    vq.GumbelQuantizer: (lambda: vq.GumbelQuantizer(16, 3, in_channels=4), latents),
    vq.IndexBackpropQuantizer: (lambda: vq.IndexBackpropQuantizer(16, 4), latents),
    vq.LFQ: (lambda: vq.LFQ(4), latents),
    vq.LPIPSLoss: (None, pairs),
    vq.MinGPT: (lambda: vq.MinGPT(7, 90, n_layer=1, n_head=2, n_embd=8), tokens),
    vq.NLayerDiscriminator: (lambda: vq.NLayerDiscriminator(ndf=4, n_layers=1), images),
    vq.ProjectedQuantizer: (lambda: vq.ProjectedQuantizer(vq.VectorQuantizer(16, 3), 4), latents),
    vq.ResidualQuantizer: (
        lambda: vq.ResidualQuantizer([vq.VectorQuantizer(16, 4) for _ in range(2)], dropout=0.7),
        latents,
    ),
    vq.SimVQ: (lambda: vq.SimVQ(16, 4), latents),
    vq.VQModel: (build_model, images),
    vq.VectorQuantizer: (lambda: vq.VectorQuantizer(16, 4, distance="cosine", revival=LIVELY), latents),
}


@pytest.fixture(autouse=True)
def alone():
    """A compiler without memories, and one thread: tensors here are tiny."""
    torch.compiler.reset()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(kind, folder):
    if kind is not vq.LPIPSLoss:
        return MODULES[kind][0]()
    torch.save(squeezenet1_1(weights=None).state_dict(), folder / "squeezenet1_1.pth")
    return vq.LPIPSLoss("squeeze", weights=folder / "squeezenet1_1.pth")


def results(forward, module, inputs, *, seed):
    """Outputs and gradients of a step, from equal random numbers: aot_eager draws what eager draws."""
    torch.manual_seed(seed)
    inputs = [x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in inputs]
    out = forward(*inputs)
    values = [x for x in (out if isinstance(out, tuple) else [out]) if isinstance(x, Tensor) and x.requires_grad]
    if values:
        sum((x * torch.arange(x.numel()).view(x.shape).cos()).mean() for x in values).backward()
    gradients = [x.grad for x in inputs if isinstance(x, Tensor)] + [x.grad for x in module.parameters()]
    module.zero_grad()
    return tuple(out) if isinstance(out, tuple) else out, gradients


def test_the_list_is_complete():
    """But for the two losses that call autograd themselves."""
    public = {value for value in vars(vq).values() if inspect.isclass(value) and issubclass(value, nn.Module)}
    own_autograd = {vq.VQGANLoss, vq.VQLPIPSWithDiscriminator}
    conditions = {kind for kind in public if issubclass(kind, vq.Condition)}  # inside of a prior
    assert public - own_autograd - conditions - {vq.AbstractQuantizer} == set(MODULES)


@pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.__name__)
def test_one_graph_for_each_mode_serves_all_sizes(kind, tmp_path):
    """The start from data and revivals included, and after each change between training and evaluation."""
    module = build(kind, tmp_path)
    twin, seen = copy.deepcopy(module), set()
    is_slow = kind is vq.LPIPSLoss  # with unknown sizes, its pooling takes the compiler a minute
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=not is_slow)
    for step, training in enumerate([True, True, False, True, False]):
        inputs = MODULES[kind][1](*SHAPES[0 if is_slow else step % 3])
        module.train(training), twin.train(training)
        with torch._dynamo.config.patch(error_on_recompile=training in seen):
            found = results(compiled, module, inputs, seed=step)
        seen.add(training)
        torch.testing.assert_close(found, results(twin, twin, inputs, seed=step))
        torch.testing.assert_close(module.state_dict(), twin.state_dict())


def test_marked_dimensions_are_enough():
    """Sizes equal to numbers of channels included, which dynamic=True takes for the same."""
    quantizer = vq.EMAVectorQuantizer(16, 4)
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    for step, shape in enumerate([(2, 4, 4, 8), (4, 4, 3, 5), (3, 4, 6, 4)]):
        z = torch.randn(shape)
        for dimension in (0, 2, 3):
            torch._dynamo.mark_dynamic(z, dimension)
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            indices = compiled(z).indices
        assert indices.shape == (shape[0], *shape[2:])
