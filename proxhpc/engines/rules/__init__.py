"""The engine without a model: published rules that write programs."""
