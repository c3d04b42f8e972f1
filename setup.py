"""Package metadata; the tool tables are in ``pyproject.toml``."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

BASE = [
    "torch>=2.11,<2.15",
    "lightning>=2.6.6,<3",
    "jsonargparse[signatures]>=4.53,<5",
    "torchmetrics>=1.9,<2",
    "torchao>=0.17,<0.20",
    "einops>=0.8.1,<1",
    "safetensors>=0.6,<1",
    "pyyaml>=6.0.2,<7",
    "numpy>=1.26,<3",
    "tokenizers>=0.22,<1",
    "ftfy>=6.3,<7",
    "huggingface-hub>=1.0,<3",
    "rich>=14,<16",
    "av>=16,<20",
]

# flash-attn-4 has only pre-releases; the "b36" in its bound lets pip take them.
FLASH_ATTENTION_4 = (
    "flash-attn-4[cu13]>=4.0.0b36; sys_platform == 'linux' and platform_machine == 'x86_64'"
)

MATPLOTLIB = "matplotlib>=3.9,<4"

UI = ["starlette>=1.0,<2", "uvicorn>=0.35,<1", "websockets>=15,<18"]

EXTRAS = {
    "cuda": ["triton>=3.6; sys_platform == 'linux'", FLASH_ATTENTION_4],
    "flash-attn": ["flash-attn>=2.8.3,<3; sys_platform == 'linux'"],
    "train": ["tensorboard>=2.20,<3"],
    "eval": ["scipy>=1.13,<2", MATPLOTLIB],
    "ui": UI,
    "dev": [
        "pytest>=9,<10",
        "pytest-xdist>=3.8,<4",
        "pytest-timeout>=2.4,<3",
        "hypothesis>=6.150,<7",
        "ruff>=0.17,<0.18",
        "mypy>=2.4,<3",
        "import-linter>=2.5,<3",
        "types-PyYAML>=6",
        "pillow>=11",
        "playwright>=1.50,<2",
        *UI,
        MATPLOTLIB,
    ],
}

setup(
    name="longlive",
    version="0.1.0",
    description="Real-time, interactive long video generation, as a Lightning research codebase",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["longlive", "longlive.*"]),
    package_data={"longlive": ["py.typed", "assets/**/*", "live/page/**/*"]},
    install_requires=BASE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["longlive = longlive.cli:main"]},
)
