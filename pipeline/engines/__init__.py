"""Engines run partitions: ``inline`` in this process, ``ray`` on a cluster."""
