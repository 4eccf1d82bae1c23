"""Reads record batches: headers and columnar payloads, as docs/STORAGE_FORMAT.md describes them.

Written from that page and docs/PROTOCOL.md alone, with Python 3.11's standard library, which has no zstd: such columns
are not restored, their entries are given as their lengths.
"""
import struct, zlib

BLOCK = 4096
BATCH = struct.Struct("<4sBBBBIIIIQQIIQQIIqqqihH24s")
BATCH_FIELDS = ("magic version header_len encoding batch_type header_crc payload_crc batch_len payload_len "
                "partition_uid batch_index leader_epoch prev_header_crc durable_end_hint base_offset offset_count "
                "record_count base_timestamp max_timestamp producer_id base_sequence producer_epoch attributes "
                "reserved").split()
LISTS = ("values value_offsets value_nulls keys key_offsets key_nulls timestamp_deltas offset_deltas header_offsets "
         "header_keys header_key_offsets header_values header_value_offsets header_value_nulls").split()

class Wrong(Exception): pass

def need(fact, text):
    if not fact: raise Wrong(text)

def up(position, align): return -(-position // align) * align

def batch_header(data, at):                  # "Record batch"
    need(at + 128 <= len(data), "no room for a batch")
    head = dict(zip(BATCH_FIELDS, BATCH.unpack_from(data, at)))
    need(head["magic"] == b"CLRB" and head["version"] == 1, "no batch of version 1")
    crc = zlib.crc32(data[at + 12:at + 128], zlib.crc32(data[at:at + 8]))
    need(crc == head["header_crc"], "header crc does not fit")
    need(head["header_len"] == 128 and head["batch_len"] == 128 + head["payload_len"] <= 1 << 23, "batch lengths")
    need(head["encoding"] <= 1 and head["batch_type"] <= 5, "unknown kind of batch")
    need(head["record_count"] <= head["offset_count"] <= 1_000_000, "batch counts")
    need(head["offset_count"] or head["batch_type"], "data without offsets")
    need(head["durable_end_hint"] <= head["base_offset"] < (1 << 63) - 1_000_000, "batch offsets")
    need(head["base_timestamp"] <= head["max_timestamp"] and not any(head["reserved"]), "batch timestamps, reserved")
    return head

def batch_at(data, at, want):                # "Chain": the batch at `at`, if it is valid and the next
    head = batch_header(data, at)
    small = head["batch_len"] < 32768
    end = at + head["batch_len"]
    padded = up(end, 64 if small else BLOCK)
    need(at % (64 if small else BLOCK) == 0 and padded <= len(data) - 2 * BLOCK, "batch lies where it must not")
    for name, value in want.items():
        fits = head[name] >= value if name == "leader_epoch" else head[name] == value
        need(fits, f"{name} is {head[name]}, expected {value}")
    need(zlib.crc32(data[at + 128:end]) == head["payload_crc"], "payload crc does not fit")
    need(not any(data[end:padded]), "padding is not zero")
    return at, head, data[at + 128:end], padded

def next_batch(data, at, want):              # "Where batches start"
    try: return batch_at(data, at, want)
    except Wrong as here:
        block = up(at, BLOCK)
        if block == at: raise
        try: found = batch_at(data, block, want)
        except Wrong: raise here
        need(found[1]["batch_len"] >= 32768, str(here))
        need(not any(data[at:block]), "gap is not zero")
        return found

def lz4_block(data):
    out, at = bytearray(), 0
    def length(count):                       # 15 goes on in the next bytes, up to one below 255
        nonlocal at
        more = count == 15
        while more:
            count, more, at = count + data[at], data[at] == 255, at + 1
        return count
    while True:
        token, at = data[at], at + 1
        literals = length(token >> 4)
        out += data[at:at + literals]
        at += literals
        if at >= len(data): return bytes(out)
        distance, at = int.from_bytes(data[at:at + 2], "little"), at + 2
        for _ in range(length(token & 15) + 4): out.append(out[-distance])

def show(data):                              # bytes as JSON: short texts, or hex, or length and CRC
    if data is None: return None
    if len(data) > 64: return {"bytes": len(data), "crc32": zlib.crc32(data)}
    return data.decode() if all(32 <= byte < 127 for byte in data) else {"hex": data.hex()}

def strings(data, ends, nulls, count, codec):    # "Ends", "Null bits", "Compression"
    need(len(ends) == count + 1 and ends[0] == 0 and ends[-1] < 1 << 31, "ends of a column")
    need(all(a <= b for a, b in zip(ends, ends[1:])), "ends of a column go back")
    if codec:
        need(ends[-1] <= 1 << 26 and (ends[-1] == 0) == (len(data) == 0), "length of a compressed column")
        need(ends[-1] <= len(data) * (255 if codec == 3 else 32768), "length of a compressed column")
    if codec == 3 and data: data = lz4_block(data)
    need(codec == 4 or len(data) == ends[-1], "column has another length than its ends say")
    null = [byte >> bit & 1 for byte in nulls for bit in range(8)] or [0] * count
    need(not nulls or len(nulls) == up(count, 8) // 8 and not any(null[count:]), "null bits")
    need(all(ends[i] == ends[i + 1] for i in range(count) if null[i]), "a null entry has bytes")
    entry = lambda start, end: {"zstd": end - start} if codec == 4 else show(data[start:end])
    return [None if null[i] else entry(ends[i], ends[i + 1]) for i in range(count)]

def records(payload, head):                  # "Columnar payload"
    root, low, found = len(payload) - 112, 0, {}
    need(root >= 0, "payload without a root")
    for number, name in enumerate(LISTS):
        pointer, count = struct.unpack_from("<iI", payload, root + 8 * number)
        size = 4 if name.endswith(("_offsets", "_deltas")) else 1
        start, end = root + 8 * number + pointer, root + 8 * number + pointer + size * count
        need(low <= start and end <= root, f"list {name} lies where it must not")
        found[name] = struct.unpack(f"<{count}I", payload[start:end]) if size == 4 else payload[start:end]
        low = end
    count, codec, arrival = head["record_count"], head["attributes"] & 7, head["attributes"] & 8
    need(codec in (0, 3, 4), "unknown codec")
    values = strings(found["values"], found["value_offsets"], found["value_nulls"], count, codec)
    need(found["key_offsets"] or not (found["keys"] or found["key_nulls"]), "keys without ends")
    if found["key_offsets"]: keys = strings(found["keys"], found["key_offsets"], found["key_nulls"], count, codec)
    else: keys = [None] * count
    times, offsets, headers = found["timestamp_deltas"], found["offset_deltas"], found["header_offsets"]
    need(len(times) in (0, count) and len(offsets) in (0, count), "number of deltas")
    span = head["max_timestamp"] - head["base_timestamp"]
    need(arrival and times or max(times, default=0) == span, "timestamps contradict the header")
    need(offsets or count == head["offset_count"], "offsets contradict the header")
    need(all(a < b for a, b in zip(offsets, (*offsets[1:], head["offset_count"]))), "offset deltas")
    need(headers or not any(found[name] for name in LISTS[9:]), "headers without offsets")
    if headers:
        need(len(headers) == count + 1 and headers[0] == 0 and headers[-1] < 1 << 31, "header offsets")
        need(all(0 <= b - a <= 1000 for a, b in zip(headers, headers[1:])), "header offsets")
        names = strings(found["header_keys"], found["header_key_offsets"], b"", headers[-1], codec)
        nulls = found["header_value_nulls"]
        texts = strings(found["header_values"], found["header_value_offsets"], nulls, headers[-1], codec)
        both = list(zip(names, texts))
    for i in range(count):
        time = head["max_timestamp"] if arrival else head["base_timestamp"] + (times[i] if times else 0)
        yield {"offset": head["base_offset"] + (offsets[i] if offsets else i), "timestamp": time,
               "key": keys[i], "value": values[i],
               "headers": both[headers[i]:headers[i + 1]] if headers else []}
