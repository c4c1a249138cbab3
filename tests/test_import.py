"""What ``import vq_components`` loads, and what it offers."""

import importlib
import importlib.metadata
import inspect
import pkgutil
import subprocess
import sys
import textwrap

import pytest

import vq_components

# The rooms with an address of their own: their names need not be at the top level.
PUBLIC_ROOMS = {"functional", "interop", "metrics", "plotting", "testing"}


def public_names(module):
    return {name for name, value in vars(module).items() if not name.startswith("_") and not inspect.ismodule(value)}


def test_import_loads_nothing_beyond_torch_and_einops():
    script = "import sys, torch; old = set(sys.modules); import vq_components; print(*set(sys.modules) - old)"
    new = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    packages = {name.partition(".")[0] for name in new} - sys.stdlib_module_names
    assert "vq_components" in packages
    assert packages <= {"vq_components", "torch", "einops", "sympy", "mpmath"}  # the last two: by torch 2.5 itself


def test_what_is_not_compiled_loads_no_compiler():
    """Torch's takes seconds to load, which would be those of the first call."""
    script = """
        import sys, torch, vq_components as vq
        for quantizer in (vq.EMAVectorQuantizer(16, 4), vq.VectorQuantizer(16, 4), vq.IndexBackpropQuantizer(16, 4)):
            out = quantizer(torch.randn(2, 4, 3, 3, requires_grad=True))
            (out.quantized.sum() + out.loss).backward()
            quantizer.decode(quantizer.eval().encode(torch.randn(2, 4, 3, 3)))
        vq.MinGPT(16, 6, n_layer=1, n_head=1, n_embd=8)(torch.zeros(2, 3, dtype=torch.int64)).sum().backward()
        print(*sorted({"torch._dynamo", "torch._inductor"} & set(sys.modules)))
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert not run.stdout.split()


def test_a_module_that_is_loaded_again_finds_its_operators():
    """Notebooks load changed modules again."""
    script = """
        import importlib, sys, torch, vq_components as vq
        importlib.reload(sys.modules["vq_components.functional._codes"])
        for name in [name for name in sys.modules if name.startswith("vq_components")]:
            del sys.modules[name]
        import vq_components as again
        vq.VectorQuantizer(16, 4)(torch.randn(2, 4)), again.IndexBackpropQuantizer(16, 4)(torch.randn(2, 4))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_all_lists_every_public_name_once():
    assert sorted(set(vq_components.__all__)) == sorted(vq_components.__all__)
    assert set(vq_components.__all__) - {"__version__", "functional"} == public_names(vq_components)


@pytest.mark.parametrize(
    "module", ["vq_components", *(f"vq_components.{room}" for room in ("functional", "metrics", "plotting"))]
)
def test_every_public_name_is_documented(module):
    room = importlib.import_module(module)
    docs = {name: getattr(room, name).__doc__ for name in public_names(room)}
    assert docs
    # A dataclass or NamedTuple without a docstring of its own gets its signature as one.
    assert not [name for name, doc in docs.items() if not doc or doc.startswith(f"{name}(")]


def test_what_a_room_offers_is_at_the_top_level():
    rooms = {info.name for info in pkgutil.iter_modules(vq_components.__path__) if info.ispkg} - PUBLIC_ROOMS
    offered = [public_names(importlib.import_module(f"vq_components.{room}")) for room in sorted(rooms)]
    assert all(offered)
    assert not set.union(*offered) - set(vq_components.__all__)


def test_version_is_that_of_the_installed_package():
    assert vq_components.__version__ == importlib.metadata.version("vq-components")
