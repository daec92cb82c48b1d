"""The load that settings carry within an SLA: boundary search over rates of one workload."""
