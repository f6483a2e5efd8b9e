//! Which paths exist for us: bytes relative to a root, `/` between parts.

/// Longest path in bytes. The kernel takes 4095 at a time; deeper ones are opened in stretches.
pub const PATH_BYTES: usize = 16 * 1024;
/// Longest name of one part.
pub const NAME_BYTES: usize = 255;
/// Longest target of a link (the kernel's `PATH_MAX` less its NUL).
pub const TARGET_BYTES: usize = 4095;
/// The top-level name that is the runtime's own.
pub const RESERVED: &[u8] = b".the0";

/// Why `path` can't be accepted, or None.
pub fn refusal(path: &[u8]) -> Option<&'static str> {
    if path.is_empty() {
        return Some("it is empty");
    }
    if path.len() > PATH_BYTES {
        return Some("it is too long");
    }
    if path[0] == b'/' {
        return Some("it is absolute");
    }
    for (i, part) in path.split(|b| *b == b'/').enumerate() {
        if let Some(why) = name_refusal(part) {
            return Some(why);
        }
        if i == 0 && part == RESERVED {
            return Some("that name is reserved");
        }
    }
    None
}

/// Why `name` can't be one part of a path, or None.
pub fn name_refusal(name: &[u8]) -> Option<&'static str> {
    match name {
        b"" => Some("it has an empty part"),
        b"." | b".." => Some("it has a part that is . or .."),
        _ if name.len() > NAME_BYTES => Some("it has a part over 255 bytes"),
        _ if name.contains(&0) => Some("it contains NUL"),
        _ => None,
    }
}

/// The folder's path ("" for the root) and the last part.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// `dir` + `/` + `name`; `dir` may be the root, "".
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    if !dir.is_empty() {
        path.extend_from_slice(dir);
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// Whether `path` is `prefix` or lies below it.
pub fn at_or_below(path: &[u8], prefix: &[u8]) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest[0] == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_would_escape() {
        for bad in [&b""[..], b"/a", b"a//b", b"a/", b".", b"..", b"a/../b", b"a/.", b"a\0b", b".the0", b".the0/index"] {
            assert!(refusal(bad).is_some(), "{}", bad.escape_ascii());
        }
        assert!(refusal(&[b'x'; 256]).is_some());
        assert!(refusal(&b"a/".repeat(9000)).is_some());
        for good in [&b"a"[..], b"a/b", b"...", b"a/.the0", b".the0x", b"\xff\n", b"a/..b"] {
            assert_eq!(refusal(good), None, "{}", good.escape_ascii());
        }
        assert_eq!(refusal(&[b'x'; 255]), None);
    }

    #[test]
    fn knows_what_lies_below() {
        assert!(at_or_below(b"a/b", b"a") && at_or_below(b"a", b"a") && at_or_below(b"a", b""));
        assert!(!at_or_below(b"ab", b"a") && !at_or_below(b"a", b"a/b"));
        assert_eq!((split(b"a/b/c"), split(b"c")), ((&b"a/b"[..], &b"c"[..]), (&b""[..], &b"c"[..])));
    }
}
