"""What the headers of audio files say of their length, as far as it helps.

None is trusted: what tells more than there is shows that a file was cut off.
"""

# Some writers put a few bytes too many into a header; that is harmless.
_SLACK = 64
# Magic of a file, where its header tells the size of what follows, and in
# which order of bytes. Those that write to a pipe cannot know the size, and put
# 0, the largest number or about half of it: so sox, espeak, arecord and FFmpeg.
_SIZES = {
    b"RIFF": (4, 4, "little"),
    b"FORM": (4, 4, "big"),
    b".snd": (8, 4, "big"),
    b"riff": (16, 8, "little"),  # Sony's Wave64
    b"RF64": (20, 8, "little"),
}
_UNKNOWN_FROM = {4: 0x7FFF_F000, 8: 2**62}


def is_cut_off(path):
    """Whether a header tells a size that the file does not have."""
    with path.open("rb") as file:
        head = file.read(28)
    if head[:4] not in _SIZES:
        return False
    place, width, order = _SIZES[head[:4]]
    declared = int.from_bytes(head[place : place + width], order)
    if head[:4] == b".snd":
        declared += int.from_bytes(head[4:8], order)  # the header's own
    if declared >= _UNKNOWN_FROM[width]:
        return False
    return path.stat().st_size + _SLACK < declared + 8


def has_length(path):
    """Whether the first frame of an MP3 tells how many there are."""
    with path.open("rb") as file:
        head = file.read(10)
        # The tag before it has its size in four times seven bits.
        size = sum(byte << 7 * (3 - n) for n, byte in enumerate(head[6:]))
        file.seek(10 + size if head[:3] == b"ID3" else 0)
        first = file.read(256)
    return b"Xing" in first or b"Info" in first
