"""A GPM over HTTP, and as a reward function: for those whose training stack cannot be patched."""
