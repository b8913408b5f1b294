"""Measures PixyProxy beside baselines and peers; `make bench` runs it."""
