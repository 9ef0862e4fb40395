"""Ours and the peers, side by side: the parts of ``benchmarks/peers.py``.

Every peer is a process of its own environment (``workers/``), pinned to one core and told over a
pipe what to do (``wire``); one works at a time. All of them run the same random weights (``shapes``),
whose float64 logits (``truth``) they must give before they are timed (``rounds``).
"""
