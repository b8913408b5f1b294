"""Signing in: passwords, verified credentials, and limits on attempts."""
