"""Retrievax: neural retrieval research in JAX. `pip install -e .`; `constraints.txt` pins the tested set."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="retrievax",
    version="0.1.0",
    description="Dual encoders, generative retrieval and sparse mixture-of-experts in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(exclude=["tests", "tests.*"]),
    install_requires=[
        "absl-py>=2.1",
        "array-record>=0.8",
        "bm25s>=0.2.10,<0.4",
        "chex>=0.1.90",
        "flax>=0.12,<0.13",
        "grain>=0.2.10,<0.3",
        "importlib_resources>=6",
        "jax>=0.10,<0.11",
        "matplotlib>=3.9",
        "ml_collections>=1.1",
        "numpy>=2.1",
        "optax>=0.2.6,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "PyStemmer>=2.2",
        "pytrec_eval-terrier>=0.5.7,<0.6",
        "scipy>=1.14",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.9,<5",
        "tokenizers>=0.21,<0.24",
        "tqdm>=4.66",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10,<0.11"],
        "cuda": ["jax[cuda12]>=0.10,<0.11"],
        "test": ["hypothesis>=6.100", "import-linter>=2.1", "pytest>=8.3", "pytest-xdist>=3.6", "ruff>=0.8"],
        "bench": ["faiss-cpu>=1.9", "scikit-learn>=1.5", "torch>=2.6", "transformers>=5.0,<6"],
    },
    entry_points={
        "console_scripts": [
            "retrievax-train=experiments.train:main",
            "retrievax-evaluate=experiments.evaluate:main",
            "retrievax-checkpoints=experiments.checkpoints:main",
            "retrievax-search=experiments.search:main",
            "retrievax-encode=experiments.encode:main",
            "retrievax-experts=experiments.experts:main",
            "retrievax-launch=experiments.launch:main",
            "retrievax-cost=experiments.cost:main",
            "retrievax-plan=experiments.plan:main",
            "retrievax-docids=experiments.docids:main",
            "retrievax-split-collection=experiments.split_collection:main",
            "retrievax-sample=experiments.sample:main",
            "retrievax-generate-queries=experiments.generate_queries:main",
            "retrievax-rerank=experiments.rerank:main",
            "retrievax-compare=experiments.compare:main",
            "retrievax-sweep=experiments.sweep:main",
            "retrievax-table=experiments.table:main",
            "retrievax-plot=experiments.plot:main",
            "retrievax-average=experiments.average:main",
            "retrievax-reproduce=experiments.reproduce.__main__:main",
        ]
    },
)
