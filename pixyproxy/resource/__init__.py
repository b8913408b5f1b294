"""The gRPC face of PixyProxy: the servicer, the mapping between messages and models, statuses and interceptors."""
