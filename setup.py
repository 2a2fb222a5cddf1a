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
        "emoq_modules.evaluation": ["*.jinja"],
        "emoq_modules.inference": ["model_card.jinja"],
        "emoq_modules.training": ["architectures/*.json"],
    },
    entry_points={"console_scripts": ["emoq = emoq_modules.commands.cli:main"]},
    python_requires=">=3.10,<3.14",
    install_requires=[
        # Lower bounds are what the tests have been run with. torch and
        # torchaudio come in pairs: torchaudio's wheel is built against one
        # torch release, and SpeechBrain imports torchaudio. 2.11.1 of the one
        # does not load beside 2.11.0 of the other, which pip would choose.
        "torch==2.11.0",
        "torchaudio==2.11.0",  # resampling
        # Training loop, data pipeline, checkpoints, metrics, filter banks.
        "speechbrain>=1.1.2,<1.2",
        # Experiments as YAML; HyperPyYAML needs ruamel below 0.19.
        "hyperpyyaml>=1.2.3",
        "ruamel.yaml>=0.18,<0.19",
        # HuBERT and its like, RoBERTa, the LLM, their tokenizers, and fetching
        # them.
        "transformers>=5.20,<6",
        "accelerate>=1.15",
        "huggingface_hub>=2.4",
        "tokenizers>=0.22",
        "peft>=0.21",  # LoRA
        # Chat templates that know no system turn; reports and model cards.
        "jinja2>=3.1",
        "markupsafe>=2.0",
        "safetensors>=0.4.5",  # weights, and stored frames
        "numpy>=1.26",
        # Intervals, comparisons, calibration; resampling from unusual rates.
        # 1.15 is the first whose bootstrap takes ``rng``, and the last for
        # Python 3.10.
        "scipy>=1.15",
        # The map of embeddings; the tests hold numbers against it.
        "scikit-learn>=1.4",
        "soundfile>=0.12.1",  # reading audio
        "matplotlib>=3.8",  # plots
        "tqdm>=4.66",  # progress bars
    ],
    extras_require={
        # The sound of MELD's mp4 clips, and recordings that libsndfile does not
        # read; PyAV brings its own FFmpeg.
        "meld": ["av>=13"],
        # Tables of recordings in Parquet.
        "parquet": ["pyarrow>=18"],
        # Curves of a run while it trains, by the presets of these names. From
        # that release on wandb knows reinit="finish_previous"; run was 0.31.0,
        # without an account (WANDB_MODE=offline).
        "tensorboard": ["tensorboard>=2.21"],
        "wandb": ["wandb>=0.19.10"],
        # The LLM's frozen weights in 4 bits. From that release on it trains
        # on a CPU too.
        "qlora": ["bitsandbytes>=0.50"],
        # The page of `emoq serve`, which stands on much of Gradio: a major
        # release may break it.
        # With uvloop it outlives more connections than files may be open;
        # asyncio's own loop fills the log with tracebacks, gigabytes an hour.
        "serve": ["gradio>=6.31,<7", "uvloop>=0.23; sys_platform != 'win32'"],
        # Tab completes the commands and options of `emoq`.
        "completion": ["argcomplete>=3.7"],
        # The reference that `make api` builds, of all modules: the page's
        # import Gradio. Sphinx 8.1 is the last for Python 3.10.
        "docs": ["furo>=2024.8.6", "gradio>=6.31,<7", "sphinx>=8.1.3"],
        "dev": [
            # What the extras above bring, so that no test is skipped for it.
            "argcomplete>=3.7",
            "av>=13",
            "bitsandbytes>=0.50",
            "furo>=2024.8.6",
            "gradio>=6.31,<7",
            "uvloop>=0.23; sys_platform != 'win32'",
            "sphinx>=8.1.3",
            "pyarrow>=18",
            # The tutorial is run. IPython 9 needs Python 3.11.
            "ipython>=8.37",
            # The web page is looked at, with the system's Chromium.
            "playwright>=1.65",
            # The recipe in upstream/ keeps frames in HDF5.
            "h5py>=3.11",
            "pytest>=8",
            "pytest-xdist>=3.8",  # make test, in two processes
            "ruff>=0.12",
        ],
    },
)
