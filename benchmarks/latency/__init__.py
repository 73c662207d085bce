"""Latency measurements on the real server and engine."""
