"""The processes of a server, and what they need of the operating system."""
