"""The language model of our own: it reads embeddings, keeps keys and values, and writes or scores answers."""
