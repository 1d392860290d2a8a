"""What the papers say of Muon in words, each as an experiment that can fail."""
