import pytest

from sev_agent.api.host_names import without_names, without_paths


@pytest.mark.parametrize(
    ("text", "hosts", "expected"),
    [
        ("host c-1 does not know it", ["c-1"], "its host does not know it"),
        ("c-1 said: full; c-2 said: no", ["c-1", "c-2"], "host 1 said: full; host 2 said: no"),
        ("c-1 and c-10 and xc-1", ["c-1"], "its host and c-10 and xc-1"),
        ("C-1.example.com is away. Ask c-1.", ["c-1"], "its host is away. Ask its host."),
        ("provider c-1_amd_sev_es is full", ["c-1"], "provider its host is full"),
        ("hosts by the name 'c-1': none", ["c-1", None], "hosts by the name 'its host': none"),
        ("no reply from queue 'sev_agent_query.c-1'; it", ["c-1"], "no reply from queue 'its host'; it"),
        ("nobody is named", [None, None], "nobody is named"),
        ("a.b", ["a.b"], "its host"),
        ("axb", ["a.b"], "axb"),
        ("c-1 said: no; C-1.example.com is away", ["c-1.example.com"], "its host said: no; its host is away"),
        ("c1x and c-1 of c-1.other", ["c-1.example.com"], "c1x and its host of its host"),
        ("the disk is full, node full.example", ["full.example"], "the disk is full, node its host"),
        ("c1 is no c1.example", ["c1.example"], "c1 is no its host"),
    ],
)
def test_names_go(text: str, hosts: list[str | None], expected: str) -> None:
    """Names that are known go, whole, with what belongs to them; nothing that only looks alike does."""
    assert without_names(text, hosts) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[Errno 28] No space left on device: '/var/lib/x/y.img'", "[Errno 28] No space left on device: '{}'"),
        ("cannot open /dev/sev: denied, nor /run/a b", "cannot open {}: denied, nor {} b"),
        ("qemu: -drive file=/srv/vm/x-1.qcow2,if=none", "qemu: -drive file={},if=none"),
        ("it is in /etc/sev-agent.", "it is in {}."),
        ("ask http://images.example/var/lib/x", "ask http://images.example/var/lib/x"),
        ("read/write, 1/2 and /servers/1", "read/write, 1/2 and /servers/1"),
    ],
)
def test_paths_go(text: str, expected: str) -> None:
    """Files of a host are not named; addresses of the API and of others, and what is no path, stay."""
    assert without_paths(text) == expected.replace("{}", "a file of the host")
