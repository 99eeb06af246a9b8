"""Keystone, Glance and Placement over aiohttp."""
