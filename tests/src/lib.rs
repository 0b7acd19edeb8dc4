//! Tests of whole programs on a real kernel: see `tests/`. The demo is `src/bin/demo.rs`.
#![forbid(unsafe_code)]
