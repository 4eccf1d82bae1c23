#!/usr/bin/env python3
"""The demo: owns what is shown and how it is proved; knows of the broker only what its command line says.

Everything is done with the binary `coulee`, as a user would; what is proved is worked out here, from what the commands
printed. COULEE names the binary. DEMO_EVENTS is how many events the first run sends. DEMO_DELETE_SEGMENT=1 deletes a
segment while the broker is down: the demo has to notice, and fails. TMPDIR is where its directory is made. DEMO_REPORT is
where the load generator beside the binary writes its report; without it nothing is measured.
"""

import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

COULEE = os.environ.get("COULEE", "target/release/coulee")
EVENTS = int(os.environ.get("DEMO_EVENTS", "500000"))
DELETES = os.environ.get("DEMO_DELETE_SEGMENT", "") not in ("", "0")
REPORT = os.environ.get("DEMO_REPORT", "")
TOPIC, PARTITIONS = "events.raw", 10
# The whole of it; a broker that hangs is a failure as any other.
SECONDS_MAX = 90
# The second run ends by the kill: so many that acknowledgements under way can't be all of them.
EVENTS_UNTIL_KILLED = 500_000
# How long the simulator tries on when the broker is gone.
GIVE_UP = "3s"


# What was started here, so that nothing outlives a failure.
started = []


class Failed(Exception):
    """What was promised does not hold."""


class Part:
    """A part of the demo: one line with its time when it ends well."""

    def __enter__(self):
        self.began, self.lines = time.monotonic(), []
        return self

    def say(self, line):
        self.lines.append(line)

    def __exit__(self, kind, error, trace):
        if kind is None:
            for number, line in enumerate(self.lines):
                took = f"{time.monotonic() - self.began:5.1f} s" if number == 0 else " " * 7
                print(f"{took}  {line}", flush=True)


def start(command, stderr=subprocess.PIPE):
    """Starts a process that the demo's end ends, with whatever it has started itself."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True)
    started.append(process)
    return process


class Broker:
    """One broker on one directory."""

    def __init__(self, folder):
        self.log = open(folder / "broker.log", "ab")
        command = [COULEE, "serve", "--data-dir", str(folder / "data"), "--listen", "127.0.0.1:0"]
        self.process = start(command, self.log)
        line = self.process.stdout.readline()
        if not line:
            tail = (folder / "broker.log").read_text(errors="replace").strip().splitlines()[-8:]
            raise Failed("the broker did not start:\n  " + "\n  ".join(tail))
        self.ready = json.loads(line)
        self.address = self.ready["native"]

    def end(self, sign):
        self.process.send_signal(sign)
        code = self.process.wait()
        self.process.stdout.close()
        self.log.close()
        return code

    def run(self, *arguments, codes=(0,)):
        command = [COULEE, *arguments, "--address", self.address]
        process = start(command)
        out, error = process.communicate()
        if process.returncode not in codes:
            raise Failed(f"coulee {' '.join(arguments)} ended with {process.returncode}:\n{error.decode()}")
        return out, error.decode().strip()


def simulate(broker, count, on_line=lambda told: None):
    """Sends events. Gives what was acknowledged as (partition, offset, id), and the exit code."""
    command = [COULEE, "simulate", "users", TOPIC, "--count", str(count), "-o", "jsonl"]
    command += ["--timeout", GIVE_UP, "--address", broker.address]
    process, lines = start(command), []
    for line in process.stdout:
        lines.append(line)
        on_line(len(lines))
    error = process.stderr.read().decode()
    process.stdout.close()
    process.stderr.close()
    code = process.wait()
    acknowledged = [(one["partition"], one["offset"], one["eventId"]) for one in map(json.loads, lines)]
    return acknowledged, code, error


def consume(broker):
    """Reads the topic back: for each partition its (offset, user, id) as they came; and what the command complained of."""
    out, complaint = broker.run("consume", TOPIC, "--until-end", "-f", r"%p %o %k %v\n", codes=(0, 1) if DELETES else (0,))
    read = defaultdict(list)
    for line in out.splitlines():
        partition, offset, user, value = line.split(b" ", 3)
        event = json.loads(value)
        if event["payload"]["userId"] != user.decode():
            raise Failed(f"partition {int(partition)} offset {int(offset)} has the key of another user")
        read[int(partition)].append((int(offset), user, event["eventId"]))
    return read, complaint


def missing(read, acknowledged):
    """What was acknowledged and is not at its place, in lines for people; none if all is well."""
    there = {(partition, offset): event for partition, events in read.items() for offset, _, event in events}
    lost = defaultdict(list)
    for partition, offset, event in acknowledged:
        if there.get((partition, offset)) != event:
            lost[partition].append((offset, event))
    lines = []
    for partition, events in sorted(lost.items()):
        (first, event), (last, _) = min(events), max(events)
        lines.append(f"partition {partition}: {len(events):,} between offsets {first:,} and {last:,}, first {event}")
    total = sum(map(len, lost.values()))
    return [f"{total:,} of {len(acknowledged):,} acknowledged events are missing", *lines] if lost else []


def prove(read, acknowledged):
    """Count, order, uniqueness; fails with what does not hold. Gives how many there are, and of how many users."""
    lost = missing(read, acknowledged)
    if lost:
        raise Failed("\n  ".join(lost))
    ids, last_of_user, home = set(), {}, {}
    for partition, events in read.items():
        for expected, (offset, user, event) in enumerate(events):
            if offset != expected:
                raise Failed(f"partition {partition}: offset {offset} came where {expected} was due")
            # Ids ascend over a run and from run to run, so an older one behind a newer one is out of order.
            if last_of_user.get(user, "") >= event:
                raise Failed(f"partition {partition} offset {offset}: {user.decode()} is out of order")
            if home.setdefault(user, partition) != partition:
                raise Failed(f"{user.decode()} is in partitions {home[user]} and {partition}")
            last_of_user[user] = event
            ids.add(event)
    count = sum(map(len, read.values()))
    if len(ids) != count:
        raise Failed(f"{count - len(ids)} events came more than once")
    return count, len(last_of_user)


def delete_segment(data, topic_id):
    """Deletes the first segment of the topic, which holds acknowledged events whatever came later: the last one may
    have got its name and nothing else. Magic, topic and partition are where docs/STORAGE_FORMAT.md says."""
    segments = []
    for path in sorted((data / "p").glob("*/*.log")):
        with open(path, "rb") as file:
            header = file.read(64)
        if header[:4] == b"CLSG" and header[32:48].hex() == topic_id:
            segments.append((int(path.stem), struct.unpack_from("<I", header, 56)[0], path))
    if not segments:
        raise Failed("there is no segment to delete")
    _, partition, path = min(segments)
    size = path.stat().st_size
    path.unlink()
    return f"deleted {path.relative_to(data)}, {size >> 10} KiB of partition {partition}"


def first_run(broker):
    """Sends events, reads them back, proves both."""
    with Part() as part:
        acknowledged, code, error = simulate(broker, EVENTS)
        took = time.monotonic() - part.began
        if code != 0 or len(acknowledged) != EVENTS:
            raise Failed(f"{len(acknowledged):,} of {EVENTS:,} events were acknowledged\n{error}")
        part.say(f"{EVENTS:,} events of simulated users sent, each acknowledged from disk ({EVENTS / took:,.0f}/s)")
    with Part() as part:
        count, users = prove(consume(broker)[0], acknowledged)
        if count != EVENTS:
            raise Failed(f"{count:,} events were read, {EVENTS:,} were sent")
        part.say(f"{count:,} read back: every event once and where it was acknowledged, offsets without a gap,")
        part.say(f"the events of each of {users:,} users in order")
    return acknowledged


def second_run(broker):
    """Kills the broker while events come in. Gives what was acknowledged until then."""
    kill_at = random.randrange(EVENTS // 10, EVENTS // 2)

    def kill(told):
        if told == kill_at:
            broker.process.kill()

    with Part() as part:
        acknowledged, code, error = simulate(broker, EVENTS_UNTIL_KILLED, kill)
        if len(acknowledged) < kill_at or code == 0:
            raise Failed(f"the simulator ended with {code} after {len(acknowledged):,} acknowledgements\n{error}")
        broker.end(signal.SIGKILL)
        part.say(f"second run: broker killed with -9 in its midst; {len(acknowledged):,} events had been acknowledged")
    return acknowledged


def show(folder):
    """The whole demo."""
    with Part() as part:
        broker = Broker(folder)
        part.say(f"broker ready on {broker.address}, {broker.ready['shards']} shards, data in {folder / 'data'}")
    with Part() as part:
        made, _ = broker.run("topic", "create", TOPIC, "-p", str(PARTITIONS), "-o", "jsonl")
        part.say(f"topic {TOPIC} created with {PARTITIONS} partitions")
    acknowledged = first_run(broker)
    acknowledged += second_run(broker)
    if DELETES:
        with Part() as part:
            part.say(delete_segment(folder / "data", json.loads(made)["topic_id"]))
    with Part() as part:
        broker = Broker(folder)
        part.say("broker started again on what the kill left")
    with Part() as part:
        read, complaint = consume(broker)
        try:
            count, _ = prove(read, acknowledged)
        except Failed as failed:
            raise Failed(f"{failed}\n  coulee consume says: {complaint or 'nothing'}") from None
        more = count - len(acknowledged)
        part.say(f"all {len(acknowledged):,} acknowledged events are there, once and in order")
        part.say(f"({more:,} more had been written when it died, their acknowledgements were under way)")
    with Part() as part:
        code = broker.end(signal.SIGTERM)
        if code != 0:
            raise Failed(f"the broker ended with {code} after SIGTERM")
        part.say("broker ended by SIGTERM, exit code 0")


def measure(folder):
    """Target numbers, one short run of each row; missed ones are told, not failures."""
    with Part() as part:
        command = [str(Path(COULEE).with_name("coulee-loadgen")), "suite", "--quick", "--out", REPORT]
        process = start([*command, "--data-dir", str(folder), "--broker", COULEE])
        out, error = process.communicate()
        lines = out.decode().strip().splitlines()
        if process.returncode not in (0, 3):
            raise Failed(f"{command[0]} ended with {process.returncode}\n" + "\n".join(lines) + error.decode())
        part.say("target numbers, one short run of each row: " + next(line for line in lines if " targets met" in line))
        part.say(lines[-1])


def too_long(number, frame):
    raise Failed(f"it took longer than {SECONDS_MAX} s" if number == signal.SIGALRM else "interrupted")


def main():
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, too_long)
    signal.alarm(SECONDS_MAX)
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="coulee-demo-"))
    try:
        show(folder)
        if REPORT:
            measure(folder)
    except Failed as failed:
        print(f"FAILED after {time.monotonic() - began:.1f} s: {failed}", flush=True)
        return 1
    finally:
        signal.alarm(0)
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{time.monotonic() - began:5.1f} s  in all", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
