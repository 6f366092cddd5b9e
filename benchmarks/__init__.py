"""Measurements: python -m benchmarks.<name>. Compare figures of one run only; machines and their
neighbours differ.
"""
