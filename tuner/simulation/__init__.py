"""A workload under the engine's own scheduler in virtual time."""
