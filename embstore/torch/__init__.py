"""PyTorch: what embstore has for it; importing this room's modules needs torch."""
