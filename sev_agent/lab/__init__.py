"""A whole cloud on one machine, with a simulated SEV platform under real services."""
