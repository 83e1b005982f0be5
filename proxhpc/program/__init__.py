"""The ProX program language: pure functions of text, program and policy."""
