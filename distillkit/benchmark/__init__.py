"""Benchmarks: one suite, many methods, one budget, one protocol, one report."""
