"""What :class:`~bio_lightning.BioMonitor` is made of: one module for each thing that it does.

``statistics`` turns what mechanisms, weights and activations show into numbers, with ``probes`` looking into the steps
that are logged; ``histograms`` and ``figures`` draw, ``alerts`` warns, ``dashboard`` describes the run, and ``loggers``
knows which logger takes what.
"""

__all__ = ()
