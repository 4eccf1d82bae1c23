"""Groups the samples of a shard's thread by the stages of a record's way: shares, and nanoseconds of one element.

Usage: perf script -i FILE -F ip,sym,dso | stages.py NANOSECONDS

NANOSECONDS is the thread's time for one element. In the kernel the system call decides where a sample belongs, in the
program the function that ran; memory and copies of the C library stand alone, since they have no callers here.
"""

import collections
import sys

# The first part that is found decides: in any frame of the kernel, or in the program's innermost. After `get_signal`
# runs what rings have completed.
KERNEL = [
    ("sys_recvmsg", "receive"),
    ("sys_sendmsg", "send"),
    ("ext4_file_write_iter", "write submit"),
    ("ext4_file_read_iter", "read submit"),
    ("io_fsync", "sync submit"),
    ("sys_io_uring_enter", "ring: wait, wake, rest"),
    ("mincore", "mincore, madvise, munmap"),
    ("madvise", "mincore, madvise, munmap"),
    ("munmap", "mincore, madvise, munmap"),
    ("get_signal", "ring: wait, wake, rest"),
    ("exit_to_user_mode", "interrupts, preemption"),
    ("page_fault", "page faults"),
]
PROGRAM = [
    ("memmove", "memory copied"),
    ("memset", "memory zeroed"),
    ("malloc", "allocation"),
    ("free", "allocation"),
    ("calloc", "allocation"),
    ("realloc", "allocation"),
    ("unlink_chunk", "allocation"),
    ("crc32fast", "CRC"),
    ("header_crc", "CRC"),
    ("Memory as core::convert", "append"),
    ("coulee_server::input", "frame cut, request"),
    ("take_frames", "frame cut, request"),
    ("Slab", "frame cut, request"),
    ("shard_of", "frame cut, request"),
    ("check_entry", "validation"),
    ("columns", "validation"),
    ("check_bytes", "validation"),
    ("BatchHeader::decode", "validation"),
    ("coulee_server::shard::answers", "ack or answer encode"),
    ("coulee_server::output", "ack or answer encode"),
    ("coulee_core::shard::fetches", "read"),
    ("is_zero", "read"),
    ("Mmap", "read"),
    ("coulee_core::log::reader", "read"),
    ("coulee_core::log::source", "read"),
    ("coulee_core::log::scan", "read"),
    ("TailCache", "append"),
    ("coulee_core::log", "append"),
    ("coulee_core::partition", "append"),
    ("BatchHeader::encode", "append"),
    ("coulee_core::shard", "append"),
    ("coulee_io", "io, futures, executor"),
    ("glommio", "io, futures, executor"),
    ("futures", "io, futures, executor"),
    ("uring", "io, futures, executor"),
]


def stage(frames):
    """Where a sample belongs; `frames` has the innermost first."""
    if "kernel" in frames[0]:
        inside = [frame for frame in frames if "kernel" in frame]
        for part, name in KERNEL:
            if any(part in frame for frame in inside):
                return name
        is_call = any("do_syscall_64" in frame for frame in inside)
        return "other system calls" if is_call else "interrupts, preemption"
    for part, name in PROGRAM:
        if part in frames[0]:
            return name
    return "the rest of the program"


def main():
    nanoseconds = float(sys.argv[1])
    samples = [sample.strip().splitlines() for sample in sys.stdin.read().split("\n\n")]
    found = collections.Counter(stage(frames) for frames in samples if frames)
    total = sum(found.values())
    print(f"| stage | share of {total} samples | ns |\n|---|---|---|")
    for name, count in found.most_common():
        print(f"| {name} | {100 * count / total:.1f} % | {nanoseconds * count / total:.1f} |")


main()
