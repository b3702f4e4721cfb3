"""What importing the whole project may and may not bring in."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = (
    "backbones", "clustering", "configs", "corpora", "cross_encoder", "dual_encoder", "eval", "experiments",
    "generative_retrieval", "index", "language_model", "moe", "training",
)  # fmt: skip
UNWANTED = ("tensorflow", "torch", "transformers", "faiss", "sklearn")


def test_no_tensorflow_no_peer_and_no_started_backend():
    """TensorFlow and the benchmarks' peers stay out, and jax.distributed can still be initialized."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        if path.stem != "__init__"
    ]
    assert len(modules) > 40
    code = "\n".join([
        "import importlib, sys",
        *(f"importlib.import_module({module!r})" for module in modules),
        "from jax._src import xla_bridge",
        f"print([m for m in {UNWANTED} if m in sys.modules], len(xla_bridge._backends))",
    ])  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "[] 0\n", done.stderr
