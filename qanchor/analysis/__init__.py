"""Analysis of embeddings and events: shift, maps, clusters, attention, groups, retention."""
