"""Tuning jobs: durable workflows in a worker process of their own."""
