"""ARES / AEPO (arXiv 2510.08457, ICLR 2026): what only it needs.

`entropy` counts moments at which a response hesitates, `shaping` pays for them
by the difficulty of the problem, `duals` and `penalty` weigh the KL term by it,
`lengths` is the cold start.
"""
