"""Generative retrieval: a Transformer that spells the ids of documents."""
