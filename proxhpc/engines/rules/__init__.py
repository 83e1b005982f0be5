"""The engine without a model: published rules write the programs."""
