"""What sharded training costs: a model, what was measured for it, and a simulation of its steps."""
