"""Specs: what a user writes, loaded, located and validated."""
