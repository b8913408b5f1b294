"""PixyProxy: a gRPC service that generates images from prompts, keeps them, and finds them again."""
