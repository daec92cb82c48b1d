"""The inference engine: plans, scheduler, KV cache, model, executors, OpenAI server.

Value types and the scheduler import no torch, so the simulator can run them anywhere.
"""
