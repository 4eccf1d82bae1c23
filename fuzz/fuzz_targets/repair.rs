//! The program of the target `repair`; knows nothing of what its body checks.
#![no_main]

use coulee_tests::fuzz::memory::Counting;
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fuzz_target!(|bytes: &[u8]| coulee_tests::fuzz::repair(bytes));
