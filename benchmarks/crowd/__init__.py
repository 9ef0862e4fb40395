"""Many live streams at once: paced pools, a server, and clients of all kinds."""
