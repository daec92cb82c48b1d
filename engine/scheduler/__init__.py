"""Requests to steps: queue, rows, KV blocks, chunks, preemption. No clock, no torch."""
