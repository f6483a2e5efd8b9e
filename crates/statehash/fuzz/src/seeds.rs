//! Inputs to begin with, made by our own encoders. The folder for them is named by `FUZZ_SEEDS`.

use std::path::Path;

pub fn sow(seeds: impl IntoIterator<Item = Vec<u8>>) {
    let Some(folder) = std::env::var_os("FUZZ_SEEDS") else { return };
    for seed in seeds {
        let name = format!("seed-{}", &blake3::hash(&seed).to_hex()[..16]);
        std::fs::write(Path::new(&folder).join(name), seed).expect("write a seed");
    }
}
