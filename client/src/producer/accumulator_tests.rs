//! Tests of the accumulator: owns its claims, time given by hand; knows no runtime.
