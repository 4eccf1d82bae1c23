#!/usr/bin/env python3
"""Reads a data directory and prints what it holds as JSON lines: `python3 read_storage.py <data directory>`.

Written from docs/STORAGE_FORMAT.md and docs/PROTOCOL.md alone, with Python 3.11's standard library; the section names
below are theirs. record_batch.py beside it reads headers and payloads. Everything is checked; what is not as it has to
be is a line with "what": "error", and the exit code is 1. A damaged segment is read up to the damage.
"""
import json, pathlib, struct, sys, zlib
from record_batch import BATCH_FIELDS, BLOCK, Wrong, batch_header, need, next_batch, records, up

NEVER = -1 << 63
SHOWN = [name for name in BATCH_FIELDS if name not in ("magic", "version", "header_len", "payload_len", "reserved")]
CHECKPOINT_FIELDS = ("partition_uid log_start durable_end resume_offset resume_index resume_segment max_timestamp "
                     "epoch resume_position resume_header_crc clean").split()
errors = 0

def say(what, **fields): print(json.dumps({"what": what, **fields}))

def error(path, text):
    global errors
    errors += 1
    say("error", file=path.name, error=text)

def page(block, magic, reserved):            # a block that ends with a CRC; `reserved`: from there on it is zero
    need(block[:4] == magic, f"no magic {magic.decode()}")
    need(zlib.crc32(block[:-4]) == struct.unpack("<I", block[-4:])[0], f"page {magic.decode()}: crc does not fit")
    need(not any(block[reserved:-4]), f"page {magic.decode()}: reserved bytes are not zero")

def epochs_at(data, at, count):
    need(count <= 190, "more than 190 epochs")
    return [list(entry) for entry in struct.iter_unpack("<IQQ", data[at:at + 20 * count])]

def header_page(data, uid, path):            # "Header page"
    need(len(data) >= 3 * BLOCK, "file is too short")
    version, least, features = struct.unpack_from("<HHQ", data, 4)
    page(data[:BLOCK], b"CLSG", BLOCK - 4)
    need(least <= 1 and features <= 1, f"needs a reader of version {least} that knows features {features:#x}")
    page(data[:BLOCK], b"CLSG", 88)
    names = "cluster_id topic_id partition_uid partition leader_epoch base_offset base_index chain_anchor file_bytes"
    head = dict(zip(names.split(), struct.unpack_from("<16s16sQIIQQII", data, 16)))
    head.update(cluster_id=head["cluster_id"].hex(), topic_id=head["topic_id"].hex())
    need(head["file_bytes"] in (1 << 16, 1 << 20, 1 << 24, 1 << 27), "not one of the four sizes")
    need((head["partition_uid"], head["base_offset"], head["file_bytes"]) == (uid, int(path.stem), len(data)),
         "header page belongs to another file")
    say("segment", file=path.name, format_version=version, prezeroed=features == 1, **head)
    return {**head, "crc": struct.unpack_from("<I", data, BLOCK - 4)[0]}

def footer(data, head, next_base):           # "Sealed, closed, active"; Wrong where the segment is not validly sealed
    page(data[-BLOCK:], b"CLTR", 16)
    need(struct.unpack_from("<HHI", data, len(data) - BLOCK + 4) == (1, 0, head["crc"]), "trailer of another file")
    at = struct.unpack_from("<I", data, len(data) - BLOCK + 12)[0]
    need(at % BLOCK == 0 and BLOCK <= at <= len(data) - 2 * BLOCK, "no place for a footer")
    block = data[at:at + BLOCK]
    names = "data_end batch_count record_count end_offset end_index max_timestamp last_header_crc epoch_count".split()
    said = dict(zip(names, struct.unpack_from("<IQQQQqII", block, 12)))
    said["epochs"] = epochs_at(block, 80, said.pop("epoch_count"))
    page(block, b"CLFT", 80 + 20 * len(said["epochs"]))
    need(struct.unpack_from("<HHI", block, 4) == (1, 0, head["crc"]) and not any(block[64:80]), "footer does not fit")
    need(up(said["data_end"], BLOCK) == at and next_base in (None, said["end_offset"]), "footer does not fit")
    return {"at": at, **said}

def after(batch):                            # what the next batch of the chain has to be
    return {"partition_uid": batch["partition_uid"], "base_offset": batch["base_offset"] + batch["offset_count"],
            "batch_index": batch["batch_index"] + 1, "prev_header_crc": batch["header_crc"],
            "leader_epoch": batch["leader_epoch"]}

def show_batch(path, at, batch, payload):
    say("batch", at=at, **{name: batch[name] for name in SHOWN})
    if batch["encoding"] != 1 or batch["batch_type"] != 0: return
    try:
        for record in records(payload, batch): say("record", **record)
    except (Wrong, IndexError) as wrong: error(path, f"batch at {at}: {wrong}")

def segment(path, uid, before, next_base, durable_end):    # -> the chain behind it and where its last batch ends
    data = path.read_bytes()
    head = header_page(data, uid, path)
    want = {"partition_uid": uid, "base_offset": head["base_offset"], "batch_index": head["base_index"],
            "prev_header_crc": head["chain_anchor"], "leader_epoch": 1}
    if before and {**want, "leader_epoch": before["leader_epoch"]} != before:
        error(path, "segment does not continue the one before")
    try: said, unsealed = footer(data, head, next_base), ""
    except Wrong as wrong: said, unsealed = None, str(wrong)
    at, batches, epochs, youngest = BLOCK, {}, [], NEVER
    while said is None or at < said["data_end"]:
        try: start, batch, payload, at = next_batch(data, at, want)
        except Wrong as wrong:
            stop(path, data, at, want, said["end_offset"] if said else next_base, durable_end, wrong)
            break
        if batch["leader_epoch"] not in [epoch[0] for epoch in epochs]:
            epochs.append([batch["leader_epoch"], batch["batch_index"], batch["base_offset"]])
        youngest = max(youngest, batch["max_timestamp"])
        batches[batch["base_offset"], batch["batch_index"], start] = youngest
        show_batch(path, start, batch, payload)
        want = after(batch)
    if said:
        found = {"data_end": at, "batch_count": want["batch_index"] - head["base_index"], "epochs": epochs,
                 "record_count": want["base_offset"] - head["base_offset"], "end_offset": want["base_offset"],
                 "end_index": want["batch_index"], "last_header_crc": want["prev_header_crc"]}
        say("footer", **said)
        for name in found:
            if said[name] != found[name]: error(path, f"footer says {name} {said[name]}, found {found[name]}")
        if said["max_timestamp"] < youngest: error(path, "a batch is younger than the footer says")
    else: say("end", at=at, offset=want["base_offset"], index=want["batch_index"])
    if path.with_suffix(".index").exists():
        if unsealed: error(path, f"has an index file, but is not sealed: {unsealed}")
        index_file(path.with_suffix(".index"), head, batches)
    return want, at

def stop(path, data, at, want, end, durable_end, wrong):    # "Recovery": is it damage, a torn tail or the end?
    place, stale = data.find(b"CLRB", at), False
    while 0 <= place < at + 75_501_568:
        try: behind = batch_header(data, place)
        except Wrong: behind = {"partition_uid": None}
        if place % 64 == 0 and behind["partition_uid"] == want["partition_uid"] and behind["leader_epoch"]:
            durable_end = max(durable_end, behind["durable_end_hint"])
            stale |= behind["batch_index"] >= want["batch_index"]
        place = data.find(b"CLRB", place + 1)
    if want["base_offset"] < (end or durable_end): kind = "damaged"
    elif stale or any(data[at:up(at, BLOCK)]): kind = "torn tail"
    else: return
    error(path, f"{kind} at {at}, offset {want['base_offset']}: {wrong}")

def covered(data, end):                      # the CRC of an index or a checkpoint: its own place is taken as zero
    need(end <= len(data), "more entries than bytes")
    return zlib.crc32(data[:60] + bytes(4) + data[64:end]) == struct.unpack_from("<I", data, 60)[0]

def index_entries(data, at, count):
    return [(o, i, p, t) for o, i, p, _, t in struct.iter_unpack("<QQIIq", data[at:at + 32 * count])]

def index_file(path, head, batches):         # "Index file"
    data = path.read_bytes()
    if not any(data): return                 # made, but not written before a crash
    try:
        need(data[:8] == b"CLIX\1\0\0\0" and len(data) % BLOCK == 0, "no index file")
        uid, base, crc, count = struct.unpack_from("<QQII", data, 8)
        need(covered(data, 64 + 32 * count) and not any(data[64 + 32 * count:]), "index: crc or padding does not fit")
        need((uid, base, crc) == (head["partition_uid"], head["base_offset"], head["crc"]), "index of another segment")
        entries = index_entries(data, 64, count)
        say("index", file=path.name, entries=entries)
        need(entries == sorted(set(entries)) and all(a[2] < b[2] for a, b in zip(entries, entries[1:])), "index order")
        need(all(batches.get(entry[:3], 1 << 63) <= entry[3] for entry in entries), "index entry without its batch")
    except Wrong as wrong: error(path, str(wrong))

def checkpoint(path):                        # "Checkpoint file" -> (sequence, partitions)
    data = path.read_bytes()
    need(data[:8] == b"CLCK\1\0\0\0" and len(data) % BLOCK == 0, "no checkpoint")
    sequence, count, end = struct.unpack_from("<QII", data, 8)
    need(end >= 64 and covered(data, end), "crc does not fit")
    need("ab"[sequence % 2] == path.suffix[1:], "the other copy's sequence")
    partitions, at = [], 64
    for _ in range(count):
        need(at + 96 <= end, "more partitions than bytes")
        entry = dict(zip(CHECKPOINT_FIELDS, struct.unpack_from("<QQQQQQqIIII", data, at)))
        entries, epochs = struct.unpack_from("<II", data, at + 72)
        need(entries <= 32, "more than 32 index entries")
        entry["index"] = index_entries(data, at + 96, entries)
        entry["epochs"] = epochs_at(data, at + 96 + 32 * entries, epochs)
        need(max(entry["log_start"], entry["resume_offset"]) <= entry["durable_end"], "behind the durable end")
        partitions.append(entry)
        at += 96 + 32 * entries + 20 * epochs
    uids = [entry["partition_uid"] for entry in partitions]
    need(at == end and uids == sorted(set(uids)), "length or order of a checkpoint")
    say("checkpoint", file=path.name, sequence=sequence, partitions=partitions)
    return sequence, partitions

def partition(directory, entry):
    paths = sorted(path for path in directory.glob("*.log") if path.stem.isdigit() and len(path.stem) == 20)
    before, at, uid, last = {}, 0, int(directory.name), paths[-1:]
    durable_end = max([entry.get("durable_end", 0)] + [int(path.stem) for path in last])
    for path, following in zip(paths, paths[1:] + [None]):
        try: before, at = segment(path, uid, before, following and int(following.stem), durable_end)
        except Wrong as wrong: before = error(path, str(wrong)) or {}
    if before.get("base_offset", 0) < durable_end: error(directory, f"offsets below {durable_end} are missing")
    if entry.get("clean") == 1 and before:
        ends = before["base_offset"], before["batch_index"], before["prev_header_crc"], at
        marks = [entry["resume_" + name] for name in ("offset", "index", "header_crc", "position")]
        if list(ends) != marks: error(directory, "does not end where the checkpoint's clean mark says")

def main(root):
    newest = {}
    for shard in sorted({path.stem for path in (root / "checkpoint").glob("*.[ab]")}, key=int):
        copies = []
        for path in sorted((root / "checkpoint").glob(f"{shard}.[ab]")):
            try: copies.append(checkpoint(path))
            except Wrong as wrong: error(path, str(wrong))
        for entry in max(copies, key=lambda copy: copy[0])[1] if copies else []:
            uid = entry["partition_uid"]
            if newest.get(uid, entry)["epoch"] <= entry["epoch"]: newest[uid] = entry
    directories = {int(path.name): path for path in (root / "p").glob("*") if path.name.isdigit()}
    for uid in sorted(directories): partition(directories[uid], newest.get(uid, {}))
    for uid in sorted(newest.keys() - directories.keys()): error(root, f"partition {uid} has no directory")
    return 1 if errors else 0

if __name__ == "__main__": sys.exit(main(pathlib.Path(sys.argv[1])))
