"""The protocols of face recognition, on embeddings from any training code: verification, identification, groups."""
