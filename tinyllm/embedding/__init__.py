"""Embeddings of texts: one vector for all tokens together."""
