"""The model, its checkpoint and its input format: torch and transformers, no OpenRLHF."""
