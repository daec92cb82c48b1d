"""Trials to a recommendation: space, surrogate, fidelities, confirmation, schedule."""
