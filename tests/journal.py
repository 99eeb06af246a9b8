"""A host's journal, as tests open it and look into it."""

from pathlib import Path

from sev_agent.compute.record_store import RecordStore

NO_SPACE = OSError(28, "No space left on device")


def opened(directory: Path) -> RecordStore:
    """The store as a daemon that has just started reads it."""
    store = RecordStore(directory)
    store.open()
    return store


def shelf(store: RecordStore) -> list[Path]:
    """What was set aside."""
    directory = store.directory / ".set-aside"
    return sorted(directory.iterdir()) if directory.exists() else []
