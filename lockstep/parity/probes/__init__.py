"""Probes, one file a layer: what can be seen of a fault, cheapest first."""
