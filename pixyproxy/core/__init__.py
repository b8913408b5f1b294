"""What PixyProxy is about, free of transport and storage: models, exceptions and text rules.

Author: djjay
Date: 2026-11-20
"""
