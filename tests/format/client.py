"""A client of the native protocol: Hello, Metadata, Produce, Fetch. Written from docs/PROTOCOL.md alone, and for the
bytes of a record batch from docs/STORAGE_FORMAT.md, with Python's standard library.

    client.py HOST:PORT produce TOPIC PARTITION          values from standard input, one a line, as one batch
    client.py HOST:PORT corrupt TOPIC PARTITION          the same with a wrong checksum
    client.py HOST:PORT fetch TOPIC PARTITION OFFSET     key and value of all records from OFFSET on
"""
import socket, struct, sys, time, zlib

# --- Archives: an int is a size, negative if signed; 16 a byte array; a list a Vec of what it holds; a dict a struct.
METADATA_REQUEST = {"topics": [{"name": [1]}], "flags": 1}
METADATA_RESPONSE = {
    "cluster_id": 16, "controller_shard": 2, "brokers": [{"broker_id": 4, "host": [1], "port": 2}], "shards": 2,
    "topics": [{"error": 2, "topic_id": 16, "name": [1], "flags": 1, "durability": 1, "partitions": [{
        "index": 4, "partition_uid": 8, "shard": 2, "broker_id": 4, "leader_epoch": 4, "error": 2}]}]}
PRODUCE_REQUEST = {"partition_uid": 8, "acks": 1, "flags": 1, "timeout_ms": 4}
PRODUCE_RESPONSE = {"base_offset": 8, "log_start": 8, "high_watermark": 8, "leader_epoch": 4}
FETCH_REQUEST = {"max_wait_ms": 4, "min_bytes": 4, "max_bytes": 4, "isolation": 1,
                 "partitions": [{"partition_uid": 8, "offset": 8, "max_bytes": 4}]}
FETCH_RESPONSE = {"partitions": [{
    "partition_uid": 8, "error": 2, "high_watermark": 8, "last_stable_offset": 8, "log_start": 8, "batches_len": 4,
    "damaged_from": 8, "damaged_to": 8}]}
LISTS = ("values value_offsets value_nulls keys key_offsets key_nulls timestamp_deltas offset_deltas header_offsets "
         "header_keys header_key_offsets header_values header_value_offsets header_value_nulls").split()
PAYLOAD = {name: [4 if name.endswith(("_offsets", "_deltas")) else 1] for name in LISTS}

def size(kind):
    if isinstance(kind, dict): return sum(map(size, kind.values()))
    return 8 if isinstance(kind, list) else abs(kind)

def children(kind, value, out):
    if isinstance(kind, dict): return {name: children(kind[name], value[name], out) for name in kind}
    if not isinstance(kind, list): return None
    inner = [children(kind[0], element, out) for element in value]
    start = len(out)
    for element, positions in zip(value, inner): place(kind[0], element, positions, out)
    return start

def place(kind, value, positions, out):
    if isinstance(kind, dict):
        for name in kind: place(kind[name], value[name], positions[name], out)
    elif isinstance(kind, list):
        out += (positions - len(out)).to_bytes(4, "little", signed=True) + len(value).to_bytes(4, "little")
    elif kind == 16: out += bytes(value)
    else: out += value.to_bytes(abs(kind), "little", signed=kind < 0)

def encode(kind, value):
    out = bytearray()
    place(kind, value, children(kind, value, out), out)
    return bytes(out)

def decode(kind, body, at=None):
    if at is None: at = len(body) - size(kind)
    if isinstance(kind, dict):
        value = {}
        for name in kind: value[name], at = decode(kind[name], body, at), at + size(kind[name])
        return value
    if isinstance(kind, list):
        first = at + int.from_bytes(body[at:at + 4], "little", signed=True)
        count = int.from_bytes(body[at + 4:at + 8], "little")
        return [decode(kind[0], body, first + index * size(kind[0])) for index in range(count)]
    if kind == 16: return list(body[at:at + 16])
    return int.from_bytes(body[at:at + abs(kind)], "little", signed=kind < 0)

# --- Frames and the conversation
FRAME = struct.Struct("<IIHHIHHI")
HELLO = struct.Struct("<4sHHQHBBHH")
ANY_SHARD = 0xffff

class Refused(Exception): pass

class Connection:
    def __init__(self, address, shard=ANY_SHARD):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.correlation = 0
        name = b"client.py"
        body, _ = self.call(0, 0, HELLO.pack(b"COUL", 1, 1, 0, shard, len(name), 0, 0, 0) + name)
        protocol, self.shard, self.shards, count = struct.unpack_from("<4H", body)
        apis = struct.iter_unpack("<3H", body[40 + body[32]:])
        self.versions = {api: (oldest, newest) for api, oldest, newest in apis}
        assert protocol == 1 and len(self.versions) == count and shard in (ANY_SHARD, self.shard)

    def exactly(self, count):
        data = bytearray()
        while len(data) < count:
            received = self.socket.recv(count - len(data))
            if not received: raise EOFError("the broker has closed the connection")
            data += received
        return bytes(data)

    def call(self, api, version, body, batches=b""):
        self.correlation += 1
        length = FRAME.size + len(body) + len(batches)
        self.socket.sendall(FRAME.pack(length, len(body), api, version, self.correlation, 0, 0, 0) + body + batches)
        head = FRAME.unpack(self.exactly(FRAME.size))
        length, body_len, *echo, flags, error, reserved = head
        assert echo == [api, version, self.correlation] and flags == 1 and reserved == 0
        rest = self.exactly(length - FRAME.size)
        if error: raise Refused(error)
        return rest[:body_len], rest[body_len:]

    def ask(self, api, request, response, value, batches=b""):
        assert self.versions[api][0] <= 1 <= self.versions[api][1]
        body, batches = self.call(api, 1, encode(request, value), batches)
        return decode(response, body), batches

# --- Record batches
BATCH = struct.Struct("<4sBBBBIIIIQQIIQQIIqqqihH24x")

def header_crc(header): return zlib.crc32(header[12:], zlib.crc32(header[:8]))

def batch_of(values):
    ends = [0]
    for value in values: ends.append(ends[-1] + len(value))
    payload = encode(PAYLOAD, {**dict.fromkeys(LISTS, []), "values": b"".join(values), "value_offsets": ends})
    now, count = int(time.time() * 1000), len(values)
    header = bytearray(BATCH.pack(
        b"CLRB", 1, 128, 1, 0, 0, zlib.crc32(payload), 128 + len(payload), len(payload), 0, 0, 0, 0, 0, 0, count, count,
        now, now, -1, -1, -1, 0))
    header[8:12] = header_crc(header).to_bytes(4, "little")
    return bytes(header) + payload

def column(payload, name, count):            # ends, bytes and null bits -> entries
    ends, nulls = payload[f"{name}_offsets"], payload[f"{name}_nulls"]
    if not ends: return [None] * count
    data = bytes(payload[f"{name}s"])
    is_null = lambda i: nulls and nulls[i // 8] >> i % 8 & 1
    return [None if is_null(i) else data[ends[i]:ends[i + 1]] for i in range(count)]

def records_of(batches, wanted):
    while batches:
        head = BATCH.unpack_from(batches)
        batch, batches = batches[:head[7]], batches[head[7]:]
        assert head[:2] == (b"CLRB", 1) and head[5] == header_crc(batch[:128]) and head[6] == zlib.crc32(batch[128:])
        assert head[3] == 1 and head[-1] & 7 == 0, "columns that are not compressed"
        base, count, payload = head[14], head[16], decode(PAYLOAD, batch[128:])
        offsets = payload["offset_deltas"] or range(count)
        for delta, key, value in zip(offsets, column(payload, "key", count), column(payload, "value", count)):
            if base + delta >= wanted: yield base + delta, key, value

def main(address, command, topic, partition, offset="0"):
    metadata, _ = Connection(address).ask(
        1, METADATA_REQUEST, METADATA_RESPONSE, {"topics": [{"name": topic.encode()}], "flags": 0})
    found = metadata["topics"][0]["partitions"][int(partition)]
    owner, uid = Connection(address, found["shard"]), found["partition_uid"]
    if command == "fetch":
        offset = int(offset)
        while True:
            response, batches = owner.ask(3, FETCH_REQUEST, FETCH_RESPONSE, {
                "max_wait_ms": 0, "min_bytes": 0, "max_bytes": 1 << 20, "isolation": 0,
                "partitions": [{"partition_uid": uid, "offset": offset, "max_bytes": 1 << 20}]})
            part = response["partitions"][0]
            assert part["error"] == 0 and part["batches_len"] == len(batches)
            for at, key, value in records_of(batches, offset):
                print(at, key, value)
                offset = at + 1
            if offset >= part["high_watermark"]: return
    batch = batch_of(sys.stdin.buffer.read().splitlines())
    if command == "corrupt": batch = batch[:-1] + bytes([batch[-1] ^ 1])
    request = {"partition_uid": uid, "acks": 1, "flags": 0, "timeout_ms": 0}
    print(owner.ask(2, PRODUCE_REQUEST, PRODUCE_RESPONSE, request, batch)[0]["base_offset"])

if __name__ == "__main__":
    try: main(*sys.argv[1:])
    except Refused as refused: print("error", refused)
