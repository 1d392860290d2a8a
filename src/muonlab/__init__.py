"""Train, compare and run small Mixture-of-Experts language models with the Muon optimizer.

The optimizer alone: ``from muonlab.optim import Muon, build_groups`` (imports torch only).
"""

__version__ = "0.1.0"
