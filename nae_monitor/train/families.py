"""Near-duplicate families and the splits made from them.

The public harmful sets share lineage (one behaviour in past tense, future tense and as an
instruction), so a held-out document is only held out if its whole family is.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

SHINGLE_WORDS = 5
SAME_FAMILY = 0.8  # Jaccard similarity of shingle sets
MOST_COMMON = 200  # a shingle in more documents than this proposes no pairs (template text)


def shingles(text: str) -> frozenset[str]:
    """The 5-word shingles of a text, lowercase; a shorter text is one shingle."""
    words = text.lower().split()
    if len(words) <= SHINGLE_WORDS:
        return frozenset({" ".join(words)})
    return frozenset(
        " ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)
    )


def family_ids(texts: Sequence[str]) -> list[int]:
    """A family number for each text: connected components of Jaccard >= 0.8 on shingles."""
    sets = [shingles(text) for text in texts]
    holders: dict[str, list[int]] = defaultdict(list)
    for i, own in enumerate(sets):
        for shingle in own:
            holders[shingle].append(i)
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: set[tuple[int, int]] = set()
    for members in holders.values():
        if len(members) > MOST_COMMON:
            continue
        for a, b in ((a, b) for n, a in enumerate(members) for b in members[n + 1 :]):
            if (a, b) in seen:
                continue
            seen.add((a, b))
            if len(sets[a] & sets[b]) >= SAME_FAMILY * len(sets[a] | sets[b]):
                parent[root(a)] = root(b)
    return [root(i) for i in range(len(texts))]


def assign_splits(texts: Sequence[str], *, validation_share: float, test_share: float) -> list[str]:
    """``train``, ``validation`` or ``test`` for each text; a family is never divided.

    The choice hashes the family's smallest text digest. Adding a document therefore moves no
    text of a family it does not join. It can move the family it joins, where its own digest is
    the smallest or where it links two families into one; and a shingle that more than
    ``MOST_COMMON`` texts come to share no longer joins anything.
    """
    families = family_ids(texts)
    key: dict[int, str] = {}
    for text, family in zip(texts, families, strict=True):
        digest = hashlib.sha256(text.encode()).hexdigest()
        key[family] = min(key.get(family, digest), digest)
    splits = []
    for family in families:
        place = int(key[family][:8], 16) / 16**8
        if place < test_share:
            splits.append("test")
        else:
            splits.append("validation" if place < test_share + validation_share else "train")
    return splits
