"""Evaluation of models: scores of texts, perplexity, and KL divergence."""
