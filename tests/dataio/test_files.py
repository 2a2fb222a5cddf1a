"""What is written is on the disk, and what is read is what was written."""

import hashlib
import json
import os

import pytest

from emoq_modules.dataio import files
from emoq_modules.dataio.files import (
    describe,
    find_fault,
    put_in_place,
    remove_abandoned,
    sha256,
    write_atomically,
    write_contents,
)
from tests.conftest import flip_a_byte


@pytest.fixture
def folder(tmp_path):
    """Two files, and the list of them."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    names = ("a.txt", "b.txt")
    write_contents(
        tmp_path, {name: describe(tmp_path / name) for name in names}
    )
    return tmp_path


def test_bytes_are_on_the_disk_before_their_name_is(tmp_path, disk):
    path = tmp_path / "a.json"
    write_atomically(path, b"{}")
    assert path.read_bytes() == b"{}"
    assert not disk.unsafe_at(path)
    assert tmp_path in disk.synced


def test_a_folder_is_on_the_disk_with_all_in_it_before_its_name_is(
    tmp_path, disk
):
    new = tmp_path / "new"
    (new / "inside").mkdir(parents=True)
    (new / "inside/a.bin").write_bytes(b"weights")
    put_in_place(new, tmp_path / "final")
    assert (tmp_path / "final/inside/a.bin").read_bytes() == b"weights"
    assert not disk.unsafe_at(tmp_path / "final")
    assert tmp_path in disk.synced


def test_a_flipped_byte_is_named(folder):
    assert find_fault(folder) is None
    flip_a_byte(folder / "b.txt")
    assert find_fault(folder).startswith("b.txt is damaged")


def test_a_flipped_byte_anywhere_in_the_list_is_a_fault(folder):
    listed = folder / "contents.json"
    whole = listed.read_bytes()
    for place in range(len(whole)):
        flip_a_byte(listed, place)
        # Except where JSON knows no difference: a space, and a tab, say.
        fault, changed = find_fault(folder), listed.read_bytes()
        assert fault or json.loads(changed) == json.loads(whole), changed
        listed.write_bytes(whole)


def test_a_list_of_sizes_by_an_earlier_version_is_read(folder):
    (folder / "contents.json").write_text('{"a.txt": 5, "b.txt": 5}')
    assert find_fault(folder) is None
    (folder / "b.txt").write_text("b")
    assert find_fault(folder) == "b.txt has 1 bytes instead of 5"


def test_a_file_is_read_once_for_its_checksum(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    later = files.time.time_ns() + 10**10
    monkeypatch.setattr(files.time, "time_ns", lambda: later)
    expected = hashlib.sha256(b"weights").hexdigest()
    assert sha256(path) == expected
    with monkeypatch.context() as patches:
        patches.setattr(files.hashlib, "sha256", None)
        assert sha256(path) == expected
    path.write_bytes(b"others")
    assert sha256(path) == hashlib.sha256(b"others").hexdigest()


def test_what_a_killed_process_has_left_is_removed_once_nobody_writes_it(
    tmp_path,
):
    for name in (".old.1.partial", ".new.2.partial", "kept.json"):
        (tmp_path / name).write_text("x")
    (tmp_path / "old.partial").mkdir()
    for name in (".old.1.partial", "old.partial", "kept.json"):
        os.utime(tmp_path / name, (1, 1))
    remove_abandoned(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".new.2.partial", "kept.json"}
    remove_abandoned(tmp_path, seconds=0)
    assert {path.name for path in tmp_path.iterdir()} == {"kept.json"}
