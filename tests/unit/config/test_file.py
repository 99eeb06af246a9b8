"""What a configuration file may say, and what is said of one that is wrong."""

import re
import socket
from pathlib import Path

import pytest

from sev_agent.config import ConfigurationError, LogFormat, load


class TestFile:
    def test_empty_but_for_keystone(self, path: Path) -> None:
        """All but Keystone's address has a default that works."""
        config = load(path, {})
        assert config.host.name == socket.gethostname()
        assert config.http.host == "127.0.0.1"
        assert config.log.format is LogFormat.AUTO

    def test_values_are_taken(self, path: Path) -> None:
        """Settings of the file replace the defaults, converted to their types."""
        path.write_text(
            '[host]\nname = "h1"\nstate_dir = "/srv/x"\n[auth]\ntype = "none"\n[hypervisor]\nfirmware_dirs = ["/a"]\n'
        )
        config = load(path, {})
        assert (config.host.name, config.host.state_dir) == ("h1", Path("/srv/x"))
        assert config.hypervisor.firmware_dirs == (Path("/a"),)

    @pytest.mark.parametrize(
        "name", ["host.state_dir", "hypervisor.emulator", "hypervisor.firmware_dirs.0", "encryption.platform_root"]
    )
    def test_relative_path(self, path: Path, name: str) -> None:
        """A path that libvirt or QEMU would look for elsewhere is refused."""
        section, key, *in_list = name.split(".")
        value = '["here"]' if in_list else '"here"'
        path.write_text(f'[auth]\ntype = "none"\n[{section}]\n{key} = {value}\n')
        with pytest.raises(ConfigurationError, match=rf"\n  {name}: .*must be an absolute path"):
            load(path, {})

    def test_host_name_of_the_machine(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The machine's own name is checked as one in the file is: it becomes the name of queues."""
        monkeypatch.setattr(socket, "gethostname", lambda: "bad name")
        with pytest.raises(ConfigurationError, match=r"\n  host\.name: "):
            load(path, {})

    def test_every_fault_at_once(self, path: Path) -> None:
        """All that is wrong is told in one go, each with its path."""
        path.write_text(
            "unknown = 1\n"
            '[host]\nname = "no spaces please"\ncolour = "red"\n'
            "[http]\nport = 70000\n"
            '[images]\ncache_max_gb = "much"\n'
            '[auth]\nauth_url = "ftp://x"\n'
            "[nonsense]\na = 1\n"
        )
        with pytest.raises(ConfigurationError) as caught:
            load(path, {"SEV_AGENT_HTTP__PROT": "1"})
        text = str(caught.value)
        for fault in (
            "unknown: no such setting",
            "host.name: must be 1 to 200 letters",
            "host.colour: no such setting",
            "http.port: ",
            "images.cache_max_gb: ",
            "auth.auth_url: must be an address",
            "nonsense: no such setting",
            "SEV_AGENT_HTTP__PROT: no such setting",
        ):
            assert f"\n  {fault}" in text
        assert str(path) in text
        assert "conf/sev-agent.toml" in text

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("host = 1", "host: "),
            ("[hypervisor]\ncall_timeout = 0", "hypervisor.call_timeout: "),
            ("[hypervisor]\ncall_timeout = inf", "hypervisor.call_timeout: "),
            ("[hypervisor]\ncall_timeout = nan", "hypervisor.call_timeout: "),
            ("[encryption]\nlimit = 0", "encryption.limit: "),
            ('[encryption]\npolicy_required = ["debug"]', "encryption.policy_required: "),
            ('[placement]\nstopped_guests = "keep"', "placement.stopped_guests: "),
            ("[placement]\nreserved_host_memory_mb = -1", "placement.reserved_host_memory_mb: "),
            ('[log]\nformat = "xml"', "log.format: "),
            ("[builds]\nmax_concurrent = 1.5", "builds.max_concurrent: "),
        ],
    )
    def test_bad_value_is_refused(self, path: Path, text: str, fault: str) -> None:
        """A value of the wrong type or out of its bounds is refused by its path."""
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=f"\n  {re.escape(fault)}"):
            load(path, {})

    def test_keystone_is_needed_with_a_password(self, path: Path) -> None:
        """Without Keystone's address a daemon that authenticates cannot start, and is told so here."""
        path.write_text("")
        with pytest.raises(ConfigurationError, match=r"auth\.auth_url: needed"):
            load(path, {})
        assert load(path, {"SEV_AGENT_AUTH__TYPE": "none"}).auth.auth_url is None

    def test_missing_file_is_refused(self, tmp_path: Path) -> None:
        """A file that is not there is never taken for one without settings."""
        with pytest.raises(ConfigurationError, match="cannot be read: No such file") as caught:
            load(tmp_path / "absent.toml", {})
        assert caught.value.remedy

    def test_directory_is_refused(self, tmp_path: Path) -> None:
        """A directory in the file's place is refused in the same way."""
        with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
            load(tmp_path, {})

    @pytest.mark.parametrize("content", [b"[host", b'[host]\nname = "\xff"', b"a = 1\na = 2"])
    def test_what_is_not_toml_is_refused(self, path: Path, content: bytes) -> None:
        """Broken syntax, a broken encoding and a doubled key are told as such."""
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match="is not TOML"):
            load(path, {})

    def test_config_cannot_be_changed(self, path: Path) -> None:
        """What was read stays as it was read."""
        config = load(path, {})
        with pytest.raises(ValueError, match="frozen"):
            config.http.port = 1  # type: ignore[misc]
