"""What a user may ask for: budgets in MACs, parameters and milliseconds.

- ``budget``: budgets as users write them, and the limits that they mean for one network.
- ``latency``: measures milliseconds; ``latency_model``: predicts them for any mask.
"""
