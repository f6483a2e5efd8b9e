//! Content digests: whole small files, 64 KiB blocks of large ones.

use std::sync::OnceLock;

/// Files larger than one block are hashed and stored block by block.
pub const BLOCK: usize = 64 * 1024;
/// The largest file the formats carry. It bounds what a forged size can make us allocate (20 bytes a block).
pub const FILE_BYTES: u64 = 1 << 40;

/// The first half of a BLAKE3: equality of content is all it is used for.
pub type Digest = [u8; 16];

pub fn digest(data: &[u8]) -> Digest {
    let mut out = [0; 16];
    out.copy_from_slice(&blake3::hash(data).as_bytes()[..16]);
    out
}

/// Digest of a large file: BLAKE3 over its length and the digests of its blocks.
pub fn whole(size: u64, blocks: impl Iterator<Item = Digest>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&size.to_le_bytes());
    let mut buffer = Vec::with_capacity(4096);
    for block in blocks {
        buffer.extend_from_slice(&block);
        if buffer.len() >= 4096 {
            hasher.update(&buffer);
            buffer.clear();
        }
    }
    hasher.update(&buffer);
    let mut out = [0; 16];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    out
}

/// How many blocks a file of `size` bytes has.
pub fn count(size: u64) -> u64 {
    size.div_ceil(BLOCK as u64)
}

/// Bytes of block `index` in a file of `size` bytes.
pub fn length(size: u64, index: u64) -> usize {
    size.saturating_sub(index * BLOCK as u64).min(BLOCK as u64) as usize
}

pub fn is_zero(data: &[u8]) -> bool {
    // One memcmp of the bytes with themselves, shifted by one.
    data.first().is_none_or(|b| *b == 0 && data[1..] == data[..data.len() - 1])
}

/// Digest of `len` (at most one block) zero bytes.
pub fn zero_digest(len: usize) -> Digest {
    static FULL: OnceLock<Digest> = OnceLock::new();
    if len == BLOCK {
        *FULL.get_or_init(|| digest(&[0; BLOCK]))
    } else {
        digest(&vec![0; len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_lengths() {
        assert_eq!((count(0), count(1), count(BLOCK as u64), count(BLOCK as u64 + 1)), (0, 1, 1, 2));
        assert_eq!((length(100_000, 0), length(100_000, 1), length(100_000, 2)), (BLOCK, 100_000 - BLOCK, 0));
    }

    #[test]
    fn sees_zeros() {
        assert!(is_zero(&[]) && is_zero(&[0]) && is_zero(&[0; 70]));
        for at in 0..70 {
            let mut data = [0; 70];
            data[at] = 1;
            assert!(!is_zero(&data));
        }
        assert_eq!(zero_digest(5), digest(&[0; 5]));
        assert_eq!(zero_digest(BLOCK), digest(&[0; BLOCK]));
    }

    #[test]
    fn length_counts() {
        let one = std::iter::once([1; 16]);
        assert_ne!(whole(1, one.clone()), whole(2, one));
    }
}
