"""Scripts that put no spaces between words, as ranges of characters for regular expressions."""

from __future__ import annotations

import re

CHINESE_JAPANESE = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
UNSPACED = rf"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff{CHINESE_JAPANESE}"
"""Thai, Lao, Burmese, Khmer, kana, Han."""
UNSPACED_LETTER = re.compile(f"[{UNSPACED}]")
