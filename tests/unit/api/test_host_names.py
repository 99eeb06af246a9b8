import pytest

from sev_agent.api.host_names import without_names


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
    ],
)
def test_names_go(text: str, hosts: list[str | None], expected: str) -> None:
    """Names that are known go, whole, with what belongs to them; nothing that only looks alike does."""
    assert without_names(text, hosts) == expected
