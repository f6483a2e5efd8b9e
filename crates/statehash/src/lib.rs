//! Hashes, diffs, packs and unpacks state directories. Knows no object store, no claim and no bot.
//!
//! Paths are bytes relative to a root that is given as an open folder; nothing is opened by an absolute path and no
//! link is ever followed. Stored bytes, the index's file and archives are hostile input.
//!
//! | module | |
//! |---|---|
//! | [`walk`], [`scan`] | getdents and statx; a metadata walk held against the index |
//! | [`watch`] | inotify: which folders have news |
//! | [`tree`], [`catalog`] | paths in memory; what the segments add up to |
//! | [`index`], [`journal`], [`codec`] | the catalog of the last commit; its file: a base and an append log; how it is written |
//! | [`block`], [`segment`] | digests of 64 KiB blocks; the format of segments |
//! | [`database`] | which files are SQLite's |
//! | [`read`], [`pack`], [`worker`], [`large`] | one file read unchanged; read, hash and compress in one pass |
//! | [`carry`] | what still counts in some segments stored anew, so that they can be dropped |
//! | [`replay`], [`unpack`] | segments played back into a catalog, onto a disk |
//! | [`compare`], [`recheck`] | the whole tree read and hashed against the index: at once, a share at a time |
//! | [`unzip`] | code archives |
//! | [`paths`], [`beneath`], [`wire`], [`pool`], [`error`] | which paths exist, opening below a root, untrusted fields, buffers, errors |

pub mod beneath;
pub mod block;
pub mod carry;
pub mod catalog;
pub mod codec;
pub mod compare;
pub mod database;
pub mod error;
pub mod index;
pub mod journal;
pub mod large;
pub mod pack;
pub mod paths;
pub mod pool;
pub mod read;
pub mod recheck;
pub mod replay;
pub mod scan;
pub mod segment;
pub mod tree;
pub mod unpack;
pub mod unzip;
pub mod walk;
pub mod watch;
pub mod wire;
pub mod worker;

#[cfg(feature = "python")]
mod python;
