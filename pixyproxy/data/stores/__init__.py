"""Where image bytes are stored: a folder, or an object store."""
