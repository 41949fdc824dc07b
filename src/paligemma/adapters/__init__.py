"""LoRA adapters: their layers, and the bank that serves several on one model."""
