"""The compute API: requests of tenants, checked and written down, and what became of them."""
