"""The OpenAI Images API, or a server compatible with it."""
