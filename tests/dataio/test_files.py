"""Files and folders that are whole, or not there."""

from emoq_modules.dataio.files import put_in_place, write_atomically


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
