"""RecordIO written out by hand from the published descriptions, to judge our reader and writer by."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

MAGIC = struct.pack("<I", 0xCED7230A)


def record(content: bytes) -> bytes:
    """One record: content is cut at each aligned magic word, as dmlc-core's writer does."""
    words = [content[at : at + 4] for at in range(0, len(content), 4)]
    parts = [b""]
    for word in words:
        if word == MAGIC:
            parts.append(b"")
        else:
            parts[-1] += word
    flags = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    return b"".join(
        MAGIC + struct.pack("<I", (flag << 29) + len(part)) + part + b"\0" * ((4 - len(part) % 4) % 4)
        for flag, part in zip(flags, parts, strict=True)
    )


def image_record(key: int, labels: float | Sequence[float], image: bytes, id2: int = 0) -> bytes:
    """As `mx.recordio.pack` has it."""
    if isinstance(labels, float | int):
        return record(struct.pack("<IfQQ", 0, labels, key, id2) + image)
    floats = struct.pack(f"<{len(labels)}f", *labels)
    return record(struct.pack("<IfQQ", len(labels), 0, key, id2) + floats + image)


def write_records(folder: Path, by_key: Mapping[int, bytes], *, index: bool = True) -> Path:
    """`train.rec` with these records in this order, and `train.idx`."""
    folder.mkdir(parents=True, exist_ok=True)
    offset, lines = 0, []
    for key, content in by_key.items():
        lines.append(f"{key}\t{offset}\n")
        offset += len(content)
    (folder / "train.rec").write_bytes(b"".join(by_key.values()))
    if index:
        (folder / "train.idx").write_text("".join(lines))
    return folder


def insightface(images: Mapping[int, tuple[int, bytes]]) -> dict[int, bytes]:
    """The records of a set as InsightFace's older `rec_builder.py` writes them: images (label, bytes) by key from 1 on,
    then one record an identity, last record 0."""
    records = {key: image_record(key, label, image) for key, (label, image) in images.items()}
    first = next_key = len(images) + 1
    for label in sorted({label for label, _ in images.values()}):
        keys = [key for key, image in images.items() if image[0] == label]
        records[next_key] = image_record(next_key, [min(keys), max(keys) + 1], b"")
        next_key += 1
    records[0] = image_record(0, [first, next_key], b"", id2=1)
    return records
