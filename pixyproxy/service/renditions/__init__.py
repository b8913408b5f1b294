"""Renditions: RPC workers request them and wait, generation workers make them."""
