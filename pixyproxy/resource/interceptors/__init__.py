"""What happens around every call. Outermost first: request log, exceptions, authentication."""
