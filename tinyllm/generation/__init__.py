"""Writing text: requests, steps, beams and results."""
