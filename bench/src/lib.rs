//! Inputs shared by the criterion benches; knows nothing of what they measure.
