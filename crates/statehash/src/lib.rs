//! Hashes, diffs, packs and unpacks state directories.
#[cfg(feature = "python")]
mod python;
