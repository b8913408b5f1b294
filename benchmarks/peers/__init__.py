"""What PixyProxy is measured beside; each is a process of its own that prints ``listening on HOST:PORT``."""
