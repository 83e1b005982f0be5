"""Documents in and out, and the frame file."""
