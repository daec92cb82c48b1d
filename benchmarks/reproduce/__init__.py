"""The tables and figures of three papers from simulation, predicted beside published."""
