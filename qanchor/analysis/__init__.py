"""What changed and why: shift, maps, clusters, attention and groups."""
