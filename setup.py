"""Installs ``emoq_modules``; ``pip install -e .`` is all it takes."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="emoq",
    version="0.1.0",
    description=(
        "EmoQ: speech emotion recognition with a speech-aware Q-Former "
        "and a large language model, as a SpeechBrain plugin"
    ),
    long_description=Path(__file__)
    .with_name("README.md")
    .read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["emoq_modules", "emoq_modules.*"]),
    package_data={
        "emoq_modules.commands": ["paper_tables.yaml", "report.jinja"],
        "emoq_modules.evaluation": ["markdown.jinja", "html.jinja"],
        "emoq_modules.inference": ["model_card.jinja"],
        "emoq_modules.training": ["architectures/*.json"],
    },
    entry_points={"console_scripts": ["emoq = emoq_modules.commands.cli:main"]},
    python_requires=">=3.10,<3.14",
    install_requires=[
        # Lower bounds are what the tests have been run with. torch and
        # torchaudio come in pairs: torchaudio's wheel is built against one
        # torch release, and SpeechBrain imports torchaudio.
        "torch>=2.11,<2.12",
        "torchaudio>=2.11,<2.12",
        "speechbrain>=1.1.2,<1.2",
        "hyperpyyaml>=1.2.3",
        "ruamel.yaml>=0.18,<0.19",
        "transformers>=5.20,<6",
        "peft>=0.21",
        "accelerate>=1.15",
        "huggingface_hub>=2.4",
        "jinja2>=3.1",
        "markupsafe>=2.0",
        "safetensors>=0.4.5",
        "tokenizers>=0.22",
        "numpy>=1.26",
        # 1.15 is the first whose bootstrap takes ``rng``, and the last for
        # Python 3.10.
        "scipy>=1.15",
        "scikit-learn>=1.4",
        "soundfile>=0.12.1",
        "matplotlib>=3.8",
        "tqdm>=4.66",
    ],
    extras_require={
        # MELD's clips are mp4; PyAV brings its own FFmpeg.
        "meld": ["av>=13"],
        # What `logger` can be, besides null. From that release on wandb
        # knows reinit="finish_previous"; run was 0.31.0, without an account
        # (WANDB_MODE=offline).
        "tensorboard": ["tensorboard>=2.21"],
        "wandb": ["wandb>=0.19.10"],
        # The LLM's frozen weights in 4 bits. From that release on it trains
        # on a CPU too.
        "qlora": ["bitsandbytes>=0.50"],
        # The page stands on much of Gradio: a major release may break it.
        "serve": ["gradio>=6.31,<7"],
        # Tab completes the commands and options of `emoq`.
        "completion": ["argcomplete>=3.7"],
        # The reference, of all modules: the page's import Gradio. Sphinx 8.1 is
        # the last for Python 3.10.
        "docs": ["furo>=2024.8.6", "gradio>=6.31,<7", "sphinx>=8.1.3"],
        "dev": [
            "argcomplete>=3.7",
            "av>=13",
            "bitsandbytes>=0.50",
            "furo>=2024.8.6",
            "gradio>=6.31,<7",
            "ipykernel>=7",
            "nbclient>=0.11",
            "nbformat>=5.11",
            "playwright>=1.65",
            "pytest>=8",
            "ruff>=0.12",
            "sphinx>=8.1.3",
        ],
    },
)
