"""Random damage: only `ImageError` comes out, and soon."""

from __future__ import annotations

import random
import time

from dinokit.errors import IMAGE_ERROR_CODES, ImageError
from dinokit.images import decode
from tests.images.corpus import seeds

MUTANTS = 800
SERVER_PIXELS = 40_000_000  # so that a mutant which claims a large size is refused rather than filled with memory


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Cut short, bytes changed (often in the header), or bytes put in."""
    if chance.random() < 0.2:
        return data[: chance.randrange(len(data))]
    changed = bytearray(data)
    reach = len(data) if chance.random() < 0.5 else min(len(data), 120)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        changed[chance.randrange(reach)] = chance.choice([0, 255, chance.randrange(256)])
    if chance.random() < 0.15:
        place = chance.randrange(len(changed))
        changed[place:place] = chance.randbytes(chance.randrange(1, 30))
    return bytes(changed)


def test_random_damage_gives_only_our_errors_and_takes_no_time() -> None:
    """No mutant of a valid file of any format crashes, hangs, warns or raises anything but an `ImageError`."""
    chance = random.Random(20261121)
    files = seeds()
    survived, codes = 0, set()
    for index in range(MUTANTS):
        kind, data = files[index % len(files)]
        mutant = mutated(data, chance)
        started = time.perf_counter()
        try:
            decode(mutant, max_pixels=SERVER_PIXELS, window=(0.0, 1.0))
            survived += 1
        except ImageError as error:
            codes.add(error.code)
        assert time.perf_counter() - started < 2, (index, kind)
    assert 0 < survived < MUTANTS
    assert codes <= set(IMAGE_ERROR_CODES)
