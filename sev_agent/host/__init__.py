"""Whether a host can run encrypted guests, why not, and what to change."""
