"""``streamssm serve``: streams over websockets, and the page that speaks to it. See docs/serve.md.

Needs aiohttp and prometheus-client: ``pip install 'streamssm[serve]'``.
"""

from __future__ import annotations

PROTOCOL = 1
