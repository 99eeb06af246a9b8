"""What operators see of a running daemon: health, readiness and metrics over HTTP."""
