"""Generating images: record, claim, generate, store and commit."""
