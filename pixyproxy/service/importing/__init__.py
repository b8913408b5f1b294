"""Imports: images that callers send."""
