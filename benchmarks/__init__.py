"""Benchmarks, one folder per topic. May import every other package; nothing imports this one."""
