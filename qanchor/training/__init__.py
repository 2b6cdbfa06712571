"""Joint contrastive and autoregressive training."""
