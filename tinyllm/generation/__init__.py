"""Generate text: requests, steps, beam search and results."""
