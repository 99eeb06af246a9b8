"""What ``sev-agent prepare`` changes on a host, and how that is taken back."""
