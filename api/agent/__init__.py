"""The engine's side of the control plane: register, report, obey."""
