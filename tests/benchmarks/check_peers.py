"""What the test kit finds in quantizers, losses, priors and tokenizers of other packages.

    python tests/benchmarks/check_peers.py [NAME ...]

Needs the packages in requirements-peers.txt; those that are not installed are left out. Prints a table of the checks
that fail, with what was measured. docs/explanation/what-the-kit-finds.md explains each of them.
"""

import contextlib
import dataclasses
import io
import sys
import warnings
from dataclasses import replace

import torch
from original import build_loss, import_original

from vq_components.testing import (
    CheckFailure,
    LossSubject,
    PriorSubject,
    QuantizerSubject,
    TokenizerSubject,
    TokenizerTraits,
    checks_of,
    diffusers,
    diffusers_tokenizer,
    taming,
    taming_loss,
    taming_prior,
    traits_of,
    transformers_prior,
    vector_quantize_pytorch,
    x_transformers_prior,
)


def declared(quantizer, adapter, **traits):
    return replace(traits_of(quantizer, adapter=adapter), **traits)


def vector_quantize_pytorch_subjects():
    import vector_quantize_pytorch as peer

    # Its entropy is that of the batch, and its estimator is the plain one.
    lfq = {"estimator": "straight_through", "trains_codebook": False}
    dead = {"kmeans_init": True, "threshold_ema_dead_code": 2}
    built = {
        "VectorQuantize": (peer.VectorQuantize(dim=8, codebook_size=16), {}),
        "VectorQuantize-kmeans": (peer.VectorQuantize(dim=8, codebook_size=16, **dead), {}),
        "VectorQuantize-image": (peer.VectorQuantize(dim=8, codebook_size=16, accept_image_fmap=True), {}),
        "VectorQuantize-cosine": (peer.VectorQuantize(dim=8, codebook_size=16, use_cosine_sim=True), {}),
        "VectorQuantize-large": (peer.VectorQuantize(dim=8, codebook_size=1024), {}),
        "FSQ": (peer.FSQ(levels=[5, 4, 3]), {}),
        "LFQ": (peer.LFQ(codebook_size=32, dim=5), lfq),
        "SimVQ": (peer.SimVQ(dim=8, codebook_size=16), {}),
        "SimVQ-residual": (peer.ResidualSimVQ(dim=8, codebook_size=16, num_quantizers=2), {}),
        "FSQ-residual": (peer.ResidualFSQ(dim=6, levels=[5, 4, 3], num_quantizers=2), {}),
        "ResidualVQ": (peer.ResidualVQ(dim=8, codebook_size=16, num_quantizers=2), {}),
        "ResidualVQ-grouped": (peer.GroupedResidualVQ(dim=8, codebook_size=16, num_quantizers=2, groups=2), {}),
        "VectorQuantize-projected": (peer.VectorQuantize(dim=8, codebook_size=16, codebook_dim=4), {}),
        "VectorQuantize-heads": (peer.VectorQuantize(dim=8, codebook_size=16, heads=2), {}),
        "VectorQuantize-by-gradient": (
            peer.VectorQuantize(dim=8, codebook_size=16, learnable_codebook=True, ema_update=False),
            {},
        ),
    }
    adapter = vector_quantize_pytorch
    return [
        QuantizerSubject(each, name=name, adapter=adapter, traits=declared(each, adapter, **traits))
        for name, (each, traits) in built.items()
    ]


def diffusers_subjects():
    from diffusers import VQModel
    from diffusers.models.autoencoders.vae import VectorQuantizer

    model = VQModel(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        num_vq_embeddings=16,
        norm_num_groups=8,
    )
    return [
        TokenizerSubject(
            model,
            name="diffusers-model",
            adapter=diffusers_tokenizer,
            traits=TokenizerTraits(image_shape=(3, 16, 16), factor=2, codebook_size=16),
        ),
        QuantizerSubject(VectorQuantizer(16, 8, beta=0.25), name="diffusers", adapter=diffusers),
        QuantizerSubject(
            VectorQuantizer(16, 8, beta=0.25, sane_index_shape=True),
            name="diffusers-sane",
            adapter=diffusers,
            traits=beta(VectorQuantizer(16, 8, beta=0.25), diffusers),
        ),
    ]


def beta(quantizer, adapter):
    """What the papers' beta means, and both packages' argument is called: the weight of the commitment."""
    return declared(quantizer, adapter, commitment_weight=0.25, codebook_weight=1.0)


def taming_subjects():
    quantize, GPT = import_original("vqvae.quantize"), import_original("transformer.mingpt").GPT
    first = quantize.VectorQuantizer(16, 8, 0.25)
    second = quantize.VectorQuantizer2(16, 8, 0.25, sane_index_shape=True)
    dropout = {"embd_pdrop": 0.1, "resid_pdrop": 0.1, "attn_pdrop": 0.1}
    gpt = {"n_layer": 2, "n_head": 2, "n_embd": 16}
    return [
        QuantizerSubject(first, name="taming", adapter=taming, traits=beta(first, taming)),
        QuantizerSubject(second, name="taming-2", adapter=taming, traits=beta(second, taming)),
        *(taming_loss_subject(kind) for kind in ("hinge", "vanilla")),
        PriorSubject(GPT(11, 8, **gpt), name="taming-gpt", adapter=taming_prior),
        PriorSubject(GPT(11, 8, n_unmasked=3, **gpt), name="taming-gpt-unmasked", adapter=taming_prior),
        PriorSubject(GPT(11, 8, **gpt, **dropout), name="taming-gpt-dropout", adapter=taming_prior),
    ]


def taming_loss_subject(kind):
    """The original's loss with weights other than 1."""
    sizes = {"disc_ndf": 8, "disc_num_layers": 2}
    weights = {"disc_factor": 0.6, "disc_weight": 0.8, "codebook_weight": 0.9, "perceptual_weight": 1.3}
    loss = build_loss(disc_start=5, disc_loss=kind, **sizes, **weights)
    traits = dataclasses.replace(taming_loss.traits(loss), image_shape=(3, 16, 16))
    return LossSubject(loss, name=f"taming-loss-{kind}", adapter=taming_loss, traits=traits)


def transformers_subjects():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 11, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2}
    gpt = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))
    return [PriorSubject(gpt, name="transformers-gpt2", adapter=transformers_prior)]


def x_transformers_subjects():
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    layers = {"dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
    built = {
        "x-transformers": Decoder(**layers),
        "x-transformers-rotary": Decoder(**layers, rotary_pos_emb=True),
        "x-transformers-dropout": Decoder(**layers, attn_dropout=0.1, ff_dropout=0.1),
    }
    return [
        PriorSubject(
            AutoregressiveWrapper(TransformerWrapper(num_tokens=11, max_seq_len=8, attn_layers=decoder)),
            name=name,
            adapter=x_transformers_prior,
        )
        for name, decoder in built.items()
    ]


BUILDERS = [
    taming_subjects,
    diffusers_subjects,
    vector_quantize_pytorch_subjects,
    transformers_subjects,
    x_transformers_subjects,
]


def main():
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    wanted = sys.argv[1:]
    for build in BUILDERS:
        try:
            subjects = build()
        except ImportError as error:
            print(f"left out: {error}")
            continue
        for subject in subjects:
            if wanted and not any(name in subject.name for name in wanted):
                continue
            checks, failures = checks_of(subject), []
            for check in checks.values():
                try:
                    with contextlib.redirect_stdout(io.StringIO()):  # of the export, which prints what it could not do
                        check(subject)
                except CheckFailure as failure:
                    failures.append(failure)
            print(f"\n{subject.name}: {len(failures)} of {len(checks)} checks fail")
            for failure in failures:
                print(f"  {failure.check:34} {failure.measured[:170]}", flush=True)


if __name__ == "__main__":
    main()
