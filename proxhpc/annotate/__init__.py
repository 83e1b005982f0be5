"""Make training examples from gold records, rules and large models."""
