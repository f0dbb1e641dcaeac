//! libFuzzer on `src/object.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    remoteprocess_fuzz::object::run(input);
});
