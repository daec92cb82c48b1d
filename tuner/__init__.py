"""Workloads, profiling, the learned cost model, simulation and search."""
