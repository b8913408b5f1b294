"""Processes: the gRPC server, its workers, and what they need of the operating system."""
