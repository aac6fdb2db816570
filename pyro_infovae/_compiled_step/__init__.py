# SPDX-License-Identifier: MIT
"""A training step watched, captured and replayed.

A step is captured by ``make_fx`` and not by ``torch.compile``. Of a step of ``TraceMMD_ELBO``,
``torch.compile`` made 15 graphs with breaks at Pyro's effect handlers, in 28.8 s, and its
``fullgraph=True`` fails on these handlers. ``make_fx`` makes one graph in about a second.
"""
