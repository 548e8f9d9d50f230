"""WHICH channels live and die together: labels, tracing, op rules, cost. Torch and numpy only."""
