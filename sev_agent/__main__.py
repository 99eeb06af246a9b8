"""``python -m sev_agent``."""

from sev_agent.cli.main import main

main()
