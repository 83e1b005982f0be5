"""Training examples from people, rules and large models."""
