"""Metrics for Prometheus, traces for OpenTelemetry, and logs as JSON. All are off by default."""
