"""Token ids: prompts and responses become samples, samples become batches."""
