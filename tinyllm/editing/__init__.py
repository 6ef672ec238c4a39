"""Changed copies of model files: other metadata and names, shards, layers; files compared."""
