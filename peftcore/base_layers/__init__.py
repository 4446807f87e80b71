"""One small class per kind of frozen layer; see :mod:`peftcore.base_layers.base` for what they share."""
