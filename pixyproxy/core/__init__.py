"""Models, exceptions and rules for text, independent of transport and storage.

Author: djjay
Date: 2026-11-20
"""
