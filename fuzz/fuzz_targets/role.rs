//! libFuzzer on `src/role.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    remoteprocess_fuzz::role::run(input);
});
