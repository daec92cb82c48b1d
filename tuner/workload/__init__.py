"""What is asked: traces, synthetic arrivals, prompts that repeat a trace."""
