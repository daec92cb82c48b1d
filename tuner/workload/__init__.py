"""The load: traces, synthetic arrivals, prompts that repeat a trace."""
