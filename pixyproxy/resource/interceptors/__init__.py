"""What happens around every call; `serving/server.py` puts the interceptors together and explains their order."""
