#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| (mooseng_proptests::decoders::find("log").run)(input));
