from pathlib import Path

from sev_agent.hypervisor.firmware_descriptors import MAX_BYTES, descriptors


def test_order_and_text(tmp_path: Path) -> None:
    """Descriptors come in the order of the directories, and in each by name; nothing else is read."""
    local, shipped = tmp_path / "etc", tmp_path / "usr"
    local.mkdir()
    shipped.mkdir()
    (local / "50.json").write_text("")
    (shipped / "60.json").write_text("b")
    (shipped / "50.json").write_text("a")
    (shipped / "60.json.dpkg-old").write_text("no")

    found = descriptors([local, tmp_path / "absent", shipped])

    assert [(file.path, file.text) for file in found] == [
        (local / "50.json", ""),
        (shipped / "50.json", "a"),
        (shipped / "60.json", "b"),
    ]


def test_unreadable_and_strange(tmp_path: Path) -> None:
    """What is no file is left out, what is no text is read as well as can be, what is huge is cut."""
    (tmp_path / "10.json").mkdir()
    (tmp_path / "20.json").symlink_to(tmp_path / "gone")
    (tmp_path / "30.json").write_bytes(b"\xff\x00{")
    (tmp_path / "40.json").write_bytes(b" " * (MAX_BYTES + 1))

    found = descriptors([tmp_path])

    assert [file.path.name for file in found] == ["30.json", "40.json"]
    assert len(found[1].text) == MAX_BYTES
