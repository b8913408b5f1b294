"""The gRPC interface: servicers, the mapping between messages and models, statuses and interceptors."""
