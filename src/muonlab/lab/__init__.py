"""Experiments: what is asked, which runs answer it, how they are tuned, made and compared."""
