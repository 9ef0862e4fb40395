"""One peer a file; each runs in its own environment, through ``sidebyside.wire``."""
