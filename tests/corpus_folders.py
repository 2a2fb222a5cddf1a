"""The true folder layouts of the corpora, in small, for the tests."""

import errno
import functools
import importlib.util
import io
import json
import os
import wave
from pathlib import Path

import av
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@functools.cache
def load_recipe(path):
    """A recipe's prepare module, one of each, by its path in ``recipes``."""
    path = ROOT / "recipes" / path
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wav_bytes(seconds=0.1, rate=16000, channels=1):
    """A 16-bit WAV file."""
    frames = round(seconds * rate)
    tone = 8000 * np.sin(2 * np.pi * 220 * np.arange(frames) / rate)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        samples = np.repeat(tone.astype("<i2"), channels)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def write(path, content):
    """Write text or bytes, making the folders on the way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    return path


def link(source, path):
    """The same file under another name: cheap, many thousand times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, path)


def clip_bytes(
    seconds=0.1,
    rate=48000,
    layout="stereo",
    audio=True,
    video=True,
    form="mp4",
    gains=1.0,
):
    """A clip, as MELD's mp4: AAC sound beside moving pictures."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as clip:
        clip.metadata["title"] = "XXXXYYYY"
        if video:
            pictures = clip.add_stream("mpeg4", rate=24)
            pictures.width, pictures.height = 32, 32
            pictures.pix_fmt = "yuv420p"
        if audio:
            sound = clip.add_stream("aac", rate=rate)
            sound.layout = layout
        if video:
            black = np.zeros((32, 32, 3), np.uint8)
            picture = av.VideoFrame.from_ndarray(black, format="rgb24")
            clip.mux([*pictures.encode(picture), *pictures.encode(None)])
        if audio:
            tone = np.sin(
                2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate
            )
            channels = len(sound.layout.channels)
            samples = np.tile(0.3 * tone.astype(np.float32), (channels, 1))
            samples *= np.reshape(np.float32(gains), (-1, 1))
            frame = av.AudioFrame.from_ndarray(samples, "fltp", layout)
            frame.sample_rate = rate
            clip.mux([*sound.encode(frame), *sound.encode(None)])
    return buffer.getvalue()


def crash(*_):
    """In place of a function: ends the process, as a fault in C does."""
    os._exit(1)


def disk_full(*_):
    """In place of a function that writes."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_splits(save_folder):
    """Split -> the manifest as it lies on disk."""
    return {
        split: json.loads((Path(save_folder) / f"{split}.json").read_bytes())
        for split in ("train", "valid", "test")
    }


def all_rows(save_folder):
    """Id -> row, of all three splits."""
    rows = {}
    for manifest in read_splits(save_folder).values():
        rows |= manifest
    return rows


def snapshot(folder):
    """Path -> content and time of change of every file in a folder."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }
