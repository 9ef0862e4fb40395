"""A tokenizer.json on an endless text: the same tokens, however the bytes were cut.

``pattern.py`` says which neighbouring characters a regular expression can see together, ``stages.py``
the same of every normaliser, pre-tokeniser and model of the library, ``cuts.py`` joins them to one
question: may the text be cut here? ``encoder.py`` cuts where it may and tokenises the pieces.
"""

from __future__ import annotations
