"""What clients of the service need beside the generated code.

``service_config.json`` is the gRPC service config that clients in every language set on their channels: it says which
calls gRPC itself sends again, and how often. docs/clients.md says why these and no others.
"""
