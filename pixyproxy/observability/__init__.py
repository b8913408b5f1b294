"""Seeing what a server does: metrics for Prometheus, and traces for OpenTelemetry. Both are off unless asked for."""
