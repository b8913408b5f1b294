"""Stores of image bytes: a folder, or an object store."""
