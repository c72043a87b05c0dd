"""Random mutations of JSON values, bytes and files."""

import copy
import random

NOT_FINITE = float("nan"), float("inf")
NUMBERS = (0, 1, -1, 0.5, 1e8, -1e8, 10**12, *NOT_FINITE)
LISTS = ([], [0], [1, 2], [[]], [[0, 0]], [0, 0, 0, 0], [-5, -5, 10, 10], [1e30] * 4, [NOT_FINITE[0]] * 4)
VALUES = (None, True, False, *NUMBERS, "", "0", "x", "ä" * 40, {}, {"a": 1}, *LISTS)


def places(value, path: tuple = ()) -> list[tuple]:
    """The paths of all keys and indices inside a JSON value."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found.append((*path, key))
        found.extend(places(item, (*path, key)))
    return found


def mutate_json(content, rng: random.Random) -> tuple[object, str]:
    """Replace, remove, double or exchange one to three values of a JSON document; returns it and what was done."""
    content, done = copy.deepcopy(content), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        paths = places(content)
        if not paths:
            break
        # each depth equally often: most paths lead to coordinates
        depth = rng.choice(sorted({len(path) for path in paths}))
        path = rng.choice([path for path in paths if len(path) == depth])
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        key, action = path[-1], rng.choice(("replace", "replace", "remove", "double", "scale", "exchange"))
        if action == "remove":
            del parent[key]
        elif action == "double" and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif action == "scale" and isinstance(parent[key], int | float):
            parent[key] = parent[key] * rng.choice((-1, 0, 2, 1e3, 1e-3))
        elif action == "exchange":
            other = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
            parent[key], parent[other] = parent[other], parent[key]
        else:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
        done.append(f"{action} {'.'.join(map(str, path))}")
    return content, "; ".join(done)


def mutate_bytes(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Flip, cut, repeat, insert or zero bytes of a file; returns them and what was done."""
    data, size = bytearray(content), len(content)
    action = rng.choice(("flip", "flip", "cut", "zero", "repeat", "insert", "empty"))
    at = rng.randrange(max(size, 1))
    if action == "flip":
        for _ in range(rng.choice((1, 1, 4, 64))):
            data[rng.randrange(size) if rng.random() < 0.5 else rng.randrange(min(size, 256))] ^= 1 << rng.randrange(8)
    elif action == "cut":
        del data[at:]
    elif action == "zero":
        length = min(size - at, rng.choice((1, 16, 4096)))
        data[at : at + length] = bytes(length)
    elif action == "repeat":
        data[at:at] = data[at : at + 512]
    elif action == "insert":
        data[at:at] = rng.randbytes(rng.choice((1, 16, 512)))
    else:
        data.clear()
    return bytes(data), f"{action} at {at} of {size} bytes"
