"""Command-line interface: one module per command group, parsing and printing only."""
